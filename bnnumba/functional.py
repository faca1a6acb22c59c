"""Batch normalization: training forward, inference forward, backward.

Every function takes arrays of one library and returns arrays of that library, see
:mod:`bnnumba.dispatch`. The channel is at `axis`; statistics go over all other axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import cpu
from .dispatch import Array, Library, library_of, overlap
from .errors import BnnumbaTypeError, BnnumbaValueError
from .layout import candidates, fits, nearest, shared_layout
from .moments import Moments, check_moments
from .validation import (
    SEEN_AS,
    check_channels,
    check_data,
    check_eps,
    check_out,
    check_real,
    check_running,
    open_data,
)

__all__ = [
    "Gradients",
    "Saved",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "fold_batch_norm",
    "saved_inference",
    "update_running",
]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_NONE: dict[np.dtype, np.ndarray] = {_SINGLE: np.empty(0, _SINGLE), _DOUBLE: np.empty(0, _DOUBLE)}
_NO_RUNNING = (_NONE[_DOUBLE], _NONE[_DOUBLE])
_NO_COUNTER = np.empty(0, np.int64)


class Gradients(NamedTuple):
    """What :func:`batch_norm_backward` returns."""

    x: Array
    weight: Array
    bias: Array


class Saved:
    """What a forward pass keeps for :func:`batch_norm_backward`.

    Attributes
    ----------
    x : array
        The input itself, not a copy.
    weight : array or None
        The weight that was given.
    mean, invstd : array, shape (C,)
        The mean and 1 / sqrt(var + eps) that normalized `x`: float64 for float64 `x`, else
        float32. The backward pass uses them in float64.
    count : int
        Values per channel.
    moments : Moments
        The moments of the batch, in float64.
    training : bool
        Whether the statistics are those of the batch itself, and so depend on `x`.
    """

    __slots__ = (
        "_array", "_axis", "_library", "_overwritten", "_scale", "_stats",
        "count", "training", "weight", "x",
    )  # fmt: skip

    def __init__(
        self,
        x: Array,
        array: np.ndarray,
        weight: Array | None,
        scale: np.ndarray,
        stats: np.ndarray,
        count: int,
        axis: int,
        library: Library,
        training: bool,
        overwritten: bool,
    ) -> None:
        self.x = x
        self.weight = weight
        self.count = count
        self.training = training
        self._array = array
        self._scale = scale
        self._stats = stats
        self._axis = axis
        self._library = library
        self._overwritten = overwritten

    def _statistic(self, row: int) -> Array:
        dtype = _DOUBLE if self._array.dtype == _DOUBLE else _SINGLE
        return self._library.leave(self._stats[row].astype(dtype))

    @property
    def mean(self) -> Array:
        """The mean of each channel."""
        return self._statistic(0)

    @property
    def invstd(self) -> Array:
        """1 / sqrt(var + eps) of each channel, 0 where both are 0."""
        return self._statistic(2)

    @property
    def moments(self) -> Moments:
        """The moments of the batch."""
        if not self.training:
            msg = "saved: a forward pass with given statistics has no moments of the batch"
            raise BnnumbaValueError(msg)
        return Moments(self.count, self._stats[0].copy(), self._stats[1].copy())

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return f"Saved(shape={shape}, axis={self._axis}, training={self.training})"


def _parameters(
    library: Library,
    channels: int,
    dtype: np.dtype,
    weight: Array | None,
    bias: Array | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias in one dtype; an empty array stands for none."""
    if weight is None and bias is None:
        none = _NONE[_DOUBLE if dtype == _DOUBLE else _SINGLE]
        return none, none
    if weight is None:
        shift = check_channels("bias", bias, library, channels)
        return _NONE[shift.dtype], shift
    scale = check_channels("weight", weight, library, channels)
    if bias is None:
        return scale, _NONE[scale.dtype]
    return _alike(scale, check_channels("bias", bias, library, channels))


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays in one dtype, as kernels are compiled for."""
    return (a, b) if a.dtype == b.dtype else (a.astype(_DOUBLE), b.astype(_DOUBLE))


def _kept_weight(
    library: Library, channels: int, dtype: np.dtype, weight: Array | None, scale: np.ndarray
) -> np.ndarray:
    """Return the weight in the dtype that its gradient has, an empty array for none."""
    if weight is None:
        return _NONE[_DOUBLE if dtype == _DOUBLE else _SINGLE]
    if scale.dtype == _DOUBLE:
        return check_channels("weight", weight, library, channels)
    return scale


def _views(
    axis: int, out: np.ndarray, *inputs: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """See all arrays alike, copying those whose strides do not allow it.

    Returns the views of the inputs and the view to write the result to, and, where that is not one
    of `out`, the array to copy to `out` afterwards.
    """
    kind = SEEN_AS[out.dtype]
    layout = shared_layout(axis, *inputs, out)
    if layout is not None:
        return layout.views(kind, *inputs, out), None
    first = inputs[0]
    found = candidates(first.shape, first.strides, first.itemsize, axis)
    layout = found[0] if found else nearest(first, axis)
    arrays = []
    for array in inputs:
        if not fits(array, layout, axis):
            copy = layout.empty(array)
            copy[...] = array
            array = copy
        arrays.append(array)
    pending = None if fits(out, layout, axis) else layout.empty(out)
    return layout.views(kind, *arrays, out if pending is None else pending), pending


def _output(
    library: Library, array: np.ndarray, out: Array | None, **others: np.ndarray
) -> np.ndarray:
    """Return where to write what is like `array`: a new array or `out`, apart from all others."""
    if out is None:
        return np.empty_like(array)
    found = check_out(out, library, array)
    for name, other in others.items():
        overlap("out", found, name, other)
    return found


def _running(
    library: Library,
    channels: int,
    running_mean: Array | None,
    running_var: Array | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the running statistics to update, an empty array for one that is not kept."""
    mean, var = (
        _NONE[_DOUBLE] if value is None else check_running(name, value, library, channels)
        for name, value in (("running_mean", running_mean), ("running_var", running_var))
    )
    overlap("running_var", var, "running_mean", mean, in_place=False)
    return mean, var


def _check_correction(correction: Any, count: int, updates_var: bool) -> float:
    number = check_real("correction", correction)
    if updates_var and 0 < count <= number:
        msg = (
            f"correction: expected less than the {count} value(s) per channel, got {number:g}; "
            "running_var cannot be updated with this batch"
        )
        raise BnnumbaValueError(msg)
    return number


def batch_norm_training(
    x: Array,
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
) -> tuple[Array, Saved]:
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
    return _training(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        _NO_COUNTER,
        momentum,
        eps,
        correction,
        axis,
        out,
    )


def _training(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    counter: np.ndarray,
    momentum: float,
    eps: float,
    correction: float,
    axis: int,
    out: Array | None,
) -> tuple[Array, Saved]:
    """Do `batch_norm_training`, and count the batch where running statistics are updated."""
    library, array, axis = open_data(x, axis)
    channels = array.shape[axis]
    eps = check_eps(eps)
    count = array.size // channels if channels else 0
    momentum = check_real("momentum", momentum)
    correction = _check_correction(correction, count, running_var is not None)
    updates = running_mean is not None or running_var is not None
    if library.on_device:
        from . import on_device

        found = on_device.training(
            library, x, array, weight, bias, running_mean, running_var, count, momentum, eps,
            correction, axis, out,
        )  # fmt: skip
        if updates and array.size:
            counter += 1
        return found
    scale, shift = _parameters(library, channels, array.dtype, weight, bias)
    mean, var = _running(library, channels, running_mean, running_var) if updates else _NO_RUNNING
    y = _output(
        library, array, out, x=array, weight=scale, bias=shift, running_mean=mean, running_var=var
    )
    if array.size:
        (x_view, y_view), pending = _views(axis, y, array)
        stats = cpu.forward(x_view, scale, shift, eps, y_view)
        if pending is not None:
            y[...] = pending
        if updates:
            cpu.update_running(
                mean, var, counter, stats[0], stats[1], float(count), momentum, correction
            )
    else:
        stats = np.zeros((3, channels))
    overwritten = out is not None and np.may_share_memory(y, array)
    scale = _kept_weight(library, channels, array.dtype, weight, scale)
    saved = Saved(x, array, weight, scale, stats, count, axis, library, True, overwritten)
    return (library.leave(y) if out is None else out), saved


def batch_norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """Normalize by given statistics, usually the running ones.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``

    Parameters
    ----------
    x : array, rank >= 2
        The data: float32, float64, float16 or bfloat16, with any strides.
    mean, var : array, shape (C,)
        The statistics of each channel, float32 or float64.
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
    library, array, axis = open_data(x, axis)
    channels = array.shape[axis]
    eps = check_eps(eps)
    if library.on_device:
        from . import on_device

        return on_device.inference(library, array, mean, var, weight, bias, eps, axis, out)
    center, spread = _alike(
        check_channels("mean", mean, library, channels),
        check_channels("var", var, library, channels),
    )
    scale, shift = _parameters(library, channels, array.dtype, weight, bias)
    y = _output(library, array, out, x=array, mean=center, var=spread, weight=scale, bias=shift)
    if array.size:
        (x_view, y_view), pending = _views(axis, y, array)
        cpu.infer(x_view, scale, shift, center, spread, eps, y_view)
        if pending is not None:
            y[...] = pending
    return library.leave(y) if out is None else out


def _constant_stats(
    library: Library,
    channels: int,
    mean_name: str,
    mean: Array,
    var_name: str,
    var: Array,
    eps: float,
) -> np.ndarray:
    """Return the float64 rows mean, var and invstd of given statistics."""
    stats = np.empty((3, channels))
    cpu.constant_stats(
        check_channels(mean_name, mean, library, channels).astype(_DOUBLE, copy=False),
        check_channels(var_name, var, library, channels).astype(_DOUBLE, copy=False),
        eps,
        stats,
    )
    return stats


def saved_inference(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    eps: float,
    axis: int,
    out: Array | None,
) -> Saved:
    """Return what the backward pass of `batch_norm_inference` needs."""
    library, array, axis = open_data(x, axis)
    channels = array.shape[axis]
    eps = check_eps(eps)
    if library.on_device:
        from . import on_device

        return on_device.saved_inference(library, x, array, mean, var, weight, eps, axis, out)
    stats = _constant_stats(library, channels, "mean", mean, "var", var, eps)
    scale, _ = _parameters(library, channels, array.dtype, weight)
    count = array.size // channels if channels else 0
    overwritten = out is not None and np.may_share_memory(library.enter("out", out), array)
    return Saved(x, array, weight, scale, stats, count, axis, library, False, overwritten)


def batch_norm_backward(grad_output: Array, saved: Saved, *, out: Array | None = None) -> Gradients:
    r"""Return the gradients of a loss with respect to x, weight and bias.

    With M values per channel and dy the gradient with respect to y:

    .. math::
        db = \sum dy, \qquad dw = \sum dy \, \hat x, \qquad
        dx = \left(dy - \frac{db}{M} - \hat x \frac{dw}{M}\right)
             \frac{w}{\sqrt{\sigma^2 + \epsilon}}

    with :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}`. Statistics that were given
    (inference) are constants, and dx is the last factor times dy.

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
    library, array, axis = saved._library, saved._array, saved._axis
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
    if library.on_device:
        from . import on_device

        return on_device.backward(dy, saved, out)
    scale = saved._scale
    dx = _output(library, array, out, grad_output=dy, x=array, weight=scale)
    channels = array.shape[axis]
    dweight, dbias = np.zeros(channels, scale.dtype), np.zeros(channels, scale.dtype)
    if array.size:
        (x_view, dy_view, dx_view), pending = _views(axis, dx, array, dy)
        stats = saved._stats
        if saved.training:
            cpu.backward(x_view, dy_view, scale, stats, dx_view, dweight, dbias)
        else:
            sums = np.empty((2, channels))
            cpu.backward_reduce(x_view, dy_view, stats[0], stats[2], sums, dweight, dbias)
            none = _NONE[scale.dtype]
            # Constant statistics: dx = dy * invstd * weight, whatever stands in x.
            cpu.normalize(dy_view, scale, none, np.zeros(channels), stats[2], dx_view)
        if pending is not None:
            dx[...] = pending
    if out is not None and np.may_share_memory(dx, array):
        saved._overwritten = True
    dx = library.leave(dx) if out is None else out
    return Gradients(dx, library.leave(dweight), library.leave(dbias))


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
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
    if training:
        return batch_norm_training(
            x,
            weight,
            bias,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
            eps=eps,
        )[0]
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value is None:
            msg = f"{name}: expected an array, as training is False, got None"
            raise BnnumbaTypeError(msg)
    library, array, _ = open_data(x, 1)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        check_channels(name, value, library, array.shape[1])
    return batch_norm_inference(x, running_mean, running_var, weight, bias, eps=eps)


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
        float32 or float64, updated in place, both or (after an error) neither.
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
    channels = m.mean.size
    library = library_of("running_mean", running_mean)
    momentum = check_real("momentum", momentum)
    correction = _check_correction(correction, m.count, True)
    if library.on_device:
        from . import on_device

        on_device.update_running(library, running_mean, running_var, m, momentum, correction)
        return
    mean = check_running("running_mean", running_mean, library, channels)
    var = check_running("running_var", running_var, library, channels)
    overlap("running_var", var, "running_mean", mean, in_place=False)
    if m.count:
        cpu.update_running(
            mean, var, _NO_COUNTER, m.mean, m.m2, float(m.count), momentum, correction
        )


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
    if array.dtype not in (_SINGLE, _DOUBLE):
        msg = f"conv_weight: expected dtype float32 or float64, got {array.dtype}"
        raise BnnumbaTypeError(msg)
    if array.ndim < 1:
        msg = "conv_weight: expected at least 1 dimension, the output channel, got 0"
        raise BnnumbaValueError(msg)
    channels = array.shape[0]
    eps = check_eps(eps)
    if library.on_device:
        from . import on_device

        return on_device.fold(
            library, array, conv_bias, running_mean, running_var, weight, bias, eps
        )
    stats = _constant_stats(
        library, channels, "running_mean", running_mean, "running_var", running_var, eps
    )
    factor = stats[2]
    offset = -stats[0]
    if conv_bias is not None:
        offset = offset + check_channels("conv_bias", conv_bias, library, channels)
    if weight is not None:
        factor = factor * check_channels("weight", weight, library, channels)
    offset = offset * factor
    if bias is not None:
        offset = offset + check_channels("bias", bias, library, channels)
    folded = array * factor.reshape((channels,) + (1,) * (array.ndim - 1))
    return library.leave(folded.astype(array.dtype)), library.leave(offset.astype(array.dtype))
