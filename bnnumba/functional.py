"""Batch normalization: training forward, inference forward, backward.

Every function takes arrays of one library and returns arrays of that library, see
:mod:`bnnumba.dispatch`. The channel is at `axis`; statistics go over all other axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import backend_of
from .dispatch import Array, ArrayT, library_of
from .errors import BnnumbaTypeError, BnnumbaValueError
from .results import Gradients, Moments, Saved, check_moments
from .validation import byte_order, check_data, check_eps, check_real, open_data

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "evaluate",
    "fold_batch_norm",
    "train",
    "train_or_evaluate",
    "update_running",
]


def _check_correction(correction: Any, count: int, updates_var: bool) -> float:
    number = check_real("correction", correction)
    if updates_var and 0 < count <= number:
        msg = (
            f"running_var: expected more than {number:g} value(s) per channel, as many as "
            f"correction={number:g} takes away, to update it with, got {count}"
        )
        raise BnnumbaValueError(msg)
    return number


def batch_norm_training(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    correction: float = 1,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[ArrayT, Saved]:
    r"""Normalize a batch by its own mean and variance, channel by channel.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, w + b

    where :math:`\mu` and :math:`\sigma^2` are the mean and the biased variance of each channel
    [1]_. Running statistics are moved in place towards those of the batch,
    ``running = (1 - momentum) * running + momentum * batch``, after everything else has succeeded.

    Parameters
    ----------
    x : array, rank >= 2
        The batch: float32, float64, float16 or bfloat16, with any strides.
    weight, bias : array, shape (C,), optional
        Scale and shift of each channel, float32 or float64; 1 and 0 where not given.
    running_mean, running_var : array, shape (C,), optional
        Statistics to update in place, float32 or float64.
    momentum : float
        The weight of the new value, as in PyTorch and cuDNN (Keras' momentum is one minus it).
    eps : float
        Added to the variance, in units of x squared; not negative.
    correction : float
        The variance that moves `running_var` is m2 / (count - correction): 1 for PyTorch's
        unbiased variance, 0 for Keras' biased one. The variance that normalizes is biased.
    axis : int
        The axis of the channels.
    out : array, optional
        Where to write y: of the shape and dtype of `x`, and either `x` itself or without overlap.

    Returns
    -------
    y : array
        Of the shape, dtype and library of `x`; `out` if that was given.
    saved : Saved
        What :func:`batch_norm_backward` needs, and the moments of the batch.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, library, dtype, shape or value, or `running_var` is to
        be updated from no more than `correction` values. Nothing has been written then.

    See Also
    --------
    batch_norm : the same with the signature of ``torch.nn.functional.batch_norm``.

    Notes
    -----
    Statistics are accumulated in float64 whatever the dtype of `x`. Where the variance and `eps`
    are both 0, y is `bias`. An empty batch gives an empty y and leaves running statistics alone.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], dtype=np.float32)
    >>> y, saved = bn.batch_norm_training(x, eps=0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> saved.mean
    array([ 2., 20.], dtype=float32)
    """
    return train(
        x, weight, bias, running_mean, running_var, None, momentum, eps, correction, axis, out
    )


def train(
    x: Array, weight: Array | None, bias: Array | None, running_mean: Array | None,
    running_var: Array | None, counter: np.ndarray | None, momentum: float, eps: float,
    correction: float, axis: int, out: Array | None,
) -> tuple[Array, Saved]:  # fmt: skip
    """Do `batch_norm_training`, and count the batch where running statistics are updated."""
    library, array, axis = open_data(x, axis)
    channels = array.shape[axis]
    eps = check_eps(eps)
    count = array.size // channels if channels else 0
    momentum = check_real("momentum", momentum)
    correction = _check_correction(correction, count, running_var is not None)
    found = backend_of(library).training(
        library, x, array, weight, bias, running_mean, running_var, counter, count, momentum, eps,
        correction, axis, out,
    )  # fmt: skip
    library.wrote(out, running_mean, running_var)
    return found


def batch_norm_inference(
    x: ArrayT,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> ArrayT:
    """Normalize by given statistics, usually the running ones.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``

    Parameters
    ----------
    x : array, rank >= 2
        The data: float32, float64, float16 or bfloat16, with any strides.
    mean, var : array, shape (C,)
        The statistics of each channel, float32 or float64. A variance below -eps gives NaN.
    weight, bias : array, shape (C,), optional
        Scale and shift of each channel, float32 or float64; 1 and 0 where not given.
    eps : float
        Added to `var`, in units of x squared; not negative.
    axis : int
        The axis of the channels.
    out : array, optional
        Where to write y: of the shape and dtype of `x`, and either `x` itself or without overlap.

    Returns
    -------
    array
        y, of the shape, dtype and library of `x`; `out` if that was given.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, library, dtype, shape or value.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> bn.batch_norm_inference(x, np.array([1.0, 10.0]), np.array([4.0, 100.0]), eps=0)
    array([[0., 0.],
           [1., 2.]])
    """
    return evaluate(x, mean, var, weight, bias, eps, axis, out)[0]


def evaluate(
    x: Array, mean: Array, var: Array, weight: Array | None, bias: Array | None, eps: float,
    axis: int, out: Array | None, names: tuple[str, str] = ("mean", "var"), saves: bool = False,
) -> tuple[Array, Saved | None]:  # fmt: skip
    """Do `batch_norm_inference`, and save what its backward pass needs if that is wanted.

    Errors call the statistics by the names that the caller knows them by.
    """
    library, array, axis = open_data(x, axis)
    eps = check_eps(eps)
    found = backend_of(library).inference(
        library, x, array, mean, var, weight, bias, eps, axis, out, names, saves
    )
    library.wrote(out)
    return found


def batch_norm_backward(grad_output: Array, saved: Saved, *, out: Array | None = None) -> Gradients:
    r"""Return the gradients of a loss with respect to x, weight and bias.

    With M values per channel and dy the gradient with respect to y:

    .. math::
        db = \sum dy, \qquad dw = \sum dy \, \hat x, \qquad
        dx = \left(dy - \frac{db}{M} - \hat x \frac{dw}{M}\right)
             \frac{w}{\sqrt{\sigma^2 + \epsilon}}

    with :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}`. Statistics that were given
    (inference; `BatchNorm` keeps them in evaluation mode) are constants, and dx is the last factor
    times dy.

    Parameters
    ----------
    grad_output : array
        dy, of the shape, dtype and library of x.
    saved : Saved
        What the forward pass returned.
    out : array, optional
        Where to write dx: of the shape and dtype of x, and either `grad_output` or x itself, or
        without overlap. There is no second backward pass once x is written over.

    Returns
    -------
    Gradients
        The named tuple ``(x, weight, bias)``. The gradients of weight and bias are always
        computed, in the dtype of the weight, or where none was given in float64 for float64 `x`
        and in float32 otherwise.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, library, dtype or shape, or if an output was written
        over x.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> y, saved = bn.batch_norm_training(x, eps=0)
    >>> dx, dw, db = bn.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
    >>> np.round(dw, 3), db
    (array([-1.225]), array([1.]))
    """
    if not isinstance(saved, Saved):
        msg = f"saved: expected what a forward pass returned, got {type(saved).__name__}"
        raise BnnumbaTypeError(msg)
    library, array = saved._library, saved._array
    dy = library.enter("grad_output", grad_output)
    if dy.dtype != array.dtype:
        check_data("grad_output", dy)
        msg = f"grad_output: expected dtype {array.dtype}, as x, got {dy.dtype}"
        raise BnnumbaTypeError(msg)
    if dy.shape != array.shape:
        msg = f"grad_output: expected shape {array.shape}, as x, got {dy.shape}"
        raise BnnumbaValueError(msg)
    if saved._overwritten:
        msg = "saved: x, which the backward pass needs, was written over; use another out"
        raise BnnumbaValueError(msg)
    gradients = backend_of(library).backward(dy, saved, out)
    library.wrote(out)
    return gradients


def batch_norm(
    x: ArrayT,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ArrayT:
    """Normalize with the signature of ``torch.nn.functional.batch_norm``; the channel axis is 1.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        The batch.
    running_mean, running_var : array, shape (C,), or None
        Updated in place in training, used in inference.
    weight, bias : array, shape (C,), optional
        Scale and shift of each channel.
    training : bool
        Whether to normalize by the statistics of the batch.
    momentum, eps : float
        See :func:`batch_norm_training`.

    Returns
    -------
    array
        y, like `x`.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        As :func:`batch_norm_training` and :func:`batch_norm_inference`; running statistics are
        required in inference.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> bn.batch_norm(np.array([[1.0], [3.0]]), mean, var, training=True, eps=0.0)
    array([[-1.],
           [ 1.]])
    >>> mean
    array([0.2])
    """
    return train_or_evaluate(x, running_mean, running_var, weight, bias, training, momentum, eps)[0]


def train_or_evaluate(
    x: Array, running_mean: Array | None, running_var: Array | None, weight: Array | None,
    bias: Array | None, training: bool, momentum: float, eps: float, correction: float = 1,
    saves: bool = False,
) -> tuple[Array, Saved | None]:  # fmt: skip
    """Do `batch_norm`, and save what its backward pass needs if that is wanted."""
    if training:
        return train(
            x, weight, bias, running_mean, running_var, None, momentum, eps, correction, 1, None
        )
    names = "running_mean", "running_var"
    for name, value in zip(names, (running_mean, running_var), strict=True):
        if value is None:
            msg = f"{name}: expected an array, as training is False, got None"
            raise BnnumbaTypeError(msg)
    return evaluate(x, running_mean, running_var, weight, bias, eps, 1, None, names, saves)


def update_running(
    running_mean: Array,
    running_var: Array,
    m: Moments,
    *,
    momentum: float = 0.1,
    correction: float = 1,
) -> None:
    """Move running statistics in place: ``running = (1 - momentum) * running + momentum * new``.

    For those who decide by themselves whether a batch counts: pass none of the running
    statistics to :func:`batch_norm_training`, look at ``saved.moments``, then commit them here.

    Parameters
    ----------
    running_mean, running_var : array, shape (C,)
        Both are required; float32 or float64, updated in place, both or (after an error) neither.
    m : Moments
        The new moments, of one batch or of several merged ones. Moments of no values change
        nothing.
    momentum : float
        The weight of the new value.
    correction : float
        The new variance is ``m.m2 / (m.count - correction)``.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, dtype, shape or value, or `m` counts no more than
        `correction` values.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> bn.update_running(mean, var, bn.moments(np.array([[1.0], [3.0]])), momentum=0.5)
    >>> mean, var
    (array([1.]), array([1.5]))
    """
    check_moments("m", m)
    library = library_of("running_mean", running_mean)
    momentum = check_real("momentum", momentum)
    correction = _check_correction(correction, m.count, True)
    backend_of(library).update_running(library, running_mean, running_var, m, momentum, correction)
    library.wrote(running_mean, running_var)


def fold_batch_norm(
    conv_weight: Array,
    conv_bias: Array | None,
    running_mean: Array,
    running_var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Fold an inference batch norm into the convolution (or dense layer) before it.

    ``batch_norm(conv(x, conv_weight, conv_bias))`` is ``conv(x, *fold_batch_norm(...))``.

    Parameters
    ----------
    conv_weight : array, shape (C, ...)
        float32 or float64, the output channel first.
    conv_bias : array, shape (C,), or None
        The bias of the convolution; None stands for 0.
    running_mean, running_var : array, shape (C,)
        The statistics that the batch norm uses.
    weight, bias : array, shape (C,), or None
        Scale and shift of the batch norm; None stands for 1 and 0.
    eps : float
        Added to `running_var`.

    Returns
    -------
    conv_weight, conv_bias : array
        New arrays of the dtype of `conv_weight`.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, dtype, shape or value.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> kernel = np.array([[2.0], [4.0]])
    >>> mean, var = np.array([1.0, 1.0]), np.array([4.0, 16.0])
    >>> bn.fold_batch_norm(kernel, None, mean, var, None, None, eps=0.0)
    (array([[1.],
           [1.]]), array([-0.5 , -0.25]))
    """
    library = library_of("conv_weight", conv_weight)
    array = library.enter("conv_weight", conv_weight)
    if array.dtype not in (np.float32, np.float64):
        msg = (
            f"conv_weight: expected dtype float32 or float64, got {array.dtype}"
            f"{byte_order(array.dtype)}"
        )
        raise BnnumbaTypeError(msg)
    if array.ndim < 1:
        msg = "conv_weight: expected at least 1 dimension, the output channel, got 0"
        raise BnnumbaValueError(msg)
    eps = check_eps(eps)
    return backend_of(library).fold(
        library, array, conv_bias, running_mean, running_var, weight, bias, eps
    )
