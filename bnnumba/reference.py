r"""Batch normalization in plain NumPy: slow, short, and as exact as float64 allows.

This is the oracle that the tests compare every kernel with, and the shortest statement of what
bnnumba computes. Nothing dispatches to it. Every function takes NumPy arrays of any real dtype
and any strides, returns new arrays in float64 (never rounded to the dtype of the input), and
leaves its arguments alone.

With :math:`M` values in a channel, sums over all of them, and everything else per channel:

.. math::

    \mu = \tfrac{1}{M} \sum x, \quad
    m_2 = \sum (x - \mu)^2, \quad
    \sigma^{-1} = \left(\tfrac{m_2}{M} + \epsilon\right)^{-1/2}, \quad
    y = (x - \mu)\, \sigma^{-1} w + b

References
----------
.. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
   Reducing Internal Covariate Shift", ICML 2015, Algorithms 1 and 2.
.. [2] T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for Computing the Sample Variance:
   Analysis and Recommendations", The American Statistician 37 (1983), equation 1.7 (the
   corrected two-pass algorithm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "ReferenceGradients",
    "ReferenceMoments",
    "ReferenceTraining",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "invstd",
    "moments",
    "update_running",
]


@dataclass(frozen=True)
class ReferenceMoments:
    """What :func:`moments` returns: one count, and mean and m2 per channel."""

    count: int
    mean: np.ndarray
    m2: np.ndarray


class ReferenceTraining(NamedTuple):
    """What :func:`batch_norm_training` returns."""

    y: np.ndarray
    moments: ReferenceMoments
    invstd: np.ndarray


class ReferenceGradients(NamedTuple):
    """What :func:`batch_norm_backward` returns."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def _channel_rows(x: np.ndarray, axis: int) -> np.ndarray:
    """Return x as (C, M): every value of a channel in one row, in extended precision."""
    channels = x.shape[axis]
    rows = np.moveaxis(x, axis, 0)
    count = int(np.prod(rows.shape[1:], dtype=np.int64))
    # longdouble is 80 bits wide on x86 and plain float64 elsewhere. bfloat16 has no direct
    # conversion to longdouble; going through float64 is exact for every supported dtype.
    return rows.astype(np.float64).astype(np.longdouble).reshape(channels, count)


def _per_channel(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """Return values (C,) in float64, shaped to broadcast against an array of that rank."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values).astype(np.float64).reshape(shape)


def moments(x: np.ndarray, *, axis: int = 1) -> ReferenceMoments:
    r"""Count, mean and sum of squared deviations of each channel.

    The corrected two-pass algorithm [2]_, in extended precision where the machine has it:

    .. math::

        \mu_0 = \tfrac{1}{M} \sum x, \quad
        \delta = \tfrac{1}{M} \sum (x - \mu_0), \quad
        \mu = \mu_0 + \delta, \quad
        m_2 = \sum (x - \mu_0)^2 - M \delta^2

    Parameters
    ----------
    x : ndarray, any rank, any real dtype
    axis : int
        The channel axis.

    Returns
    -------
    ReferenceMoments
        ``mean`` and ``m2`` are float64 of shape ``(C,)``. An empty channel has zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> reference.moments(np.array([[1.0, 10.0], [3.0, 10.0]]))
    ReferenceMoments(count=2, mean=array([ 2., 10.]), m2=array([2., 0.]))
    """
    rows = _channel_rows(x, axis)
    channels, count = rows.shape
    if count == 0:
        return ReferenceMoments(0, np.zeros(channels), np.zeros(channels))
    with np.errstate(invalid="ignore", over="ignore"):
        start = rows.sum(axis=1) / count
        deviation = rows - start[:, None]
        delta = deviation.sum(axis=1) / count
        mean = start + delta
        m2 = np.square(deviation).sum(axis=1) - count * np.square(delta)
        return ReferenceMoments(count, mean.astype(np.float64), m2.astype(np.float64))


def invstd(var: np.ndarray, eps: float) -> np.ndarray:
    """One over the standard deviation, ``1 / sqrt(var + eps)``; 0 where ``var + eps`` is 0.

    The exception is PyTorch's: a constant channel with ``eps=0`` becomes its bias, not NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> reference.invstd(np.array([4.0, 0.0]), 0.0)
    array([0.5, 0. ])
    """
    total = np.asarray(var).astype(np.float64) + eps
    with np.errstate(divide="ignore"):
        return np.where(total == 0, 0.0, 1.0 / np.sqrt(total))


def batch_norm_inference(
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
) -> np.ndarray:
    """Normalize with given statistics: ``(x - mean) * invstd(var, eps) * weight + bias``.

    Parameters
    ----------
    x : ndarray
    mean, var : ndarray of shape (C,)
    weight, bias : ndarray of shape (C,), optional
        Taken as ones and zeros where not given.
    eps : float
        Added to the variance, inside the square root.
    axis : int
        The channel axis.

    Returns
    -------
    ndarray of float64, shaped as x

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> x = np.array([[1.0], [3.0]])
    >>> reference.batch_norm_inference(x, np.array([2.0]), np.array([4.0]), eps=0.0).tolist()
    [[-0.5], [0.5]]
    """
    scale = invstd(var, eps)
    if weight is not None:
        scale = scale * weight.astype(np.float64)
    with np.errstate(invalid="ignore"):
        y = (x.astype(np.float64) - _per_channel(mean, x.ndim, axis)) * _per_channel(
            scale, x.ndim, axis
        )
        if bias is not None:
            y = y + _per_channel(bias, x.ndim, axis)
    return y


def batch_norm_training(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
) -> ReferenceTraining:
    """Normalize each channel with its own mean and (biased) variance [1]_.

    Parameters
    ----------
    x : ndarray
    weight, bias : ndarray of shape (C,), optional
    eps : float
    axis : int
        The channel axis.

    Returns
    -------
    ReferenceTraining
        ``y`` (float64, shaped as x), the moments of x, and ``invstd``.

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> reference.batch_norm_training(np.array([[1.0], [3.0]]), eps=0.0).y.tolist()
    [[-1.0], [1.0]]
    """
    m = moments(x, axis=axis)
    var = m.m2 / max(m.count, 1)
    y = batch_norm_inference(x, m.mean, var, weight, bias, eps=eps, axis=axis)
    return ReferenceTraining(y, m, invstd(var, eps))


def batch_norm_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    invstd: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    axis: int = 1,
    training: bool = True,
) -> ReferenceGradients:
    r"""Gradients with respect to x, weight and bias.

    .. math::

        db = \sum dy, \quad dw = \sigma^{-1} \sum dy\,(x - \mu)

    and, where the statistics are those of x itself (``training=True``),

    .. math::

        dx = w\,\sigma^{-1} \left(dy - \tfrac{1}{M}\sum dy
             - (x - \mu)\,\sigma^{-2}\,\tfrac{1}{M}\sum dy\,(x - \mu)\right)

    where they are constants (``training=False``), :math:`dx = w\,\sigma^{-1} dy`.

    Parameters
    ----------
    grad_output, x : ndarray of one shape
    mean, invstd : ndarray of shape (C,)
    weight : ndarray of shape (C,), optional
    axis : int
        The channel axis.
    training : bool
        Whether mean and invstd depend on x.

    Returns
    -------
    ReferenceGradients
        float64: one array shaped as x, two of shape ``(C,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> dy, x = np.array([[1.0], [0.0]]), np.array([[1.0], [3.0]])
    >>> g = reference.batch_norm_backward(dy, x, np.array([2.0]), np.array([1.0]), training=False)
    >>> g.x.tolist(), g.weight.tolist(), g.bias.tolist()
    ([[1.0], [0.0]], [-1.0], [1.0])
    """
    scale = invstd if weight is None else invstd * weight.astype(np.float64)
    with np.errstate(invalid="ignore"):
        dy = _channel_rows(grad_output, axis)
        xmu = _channel_rows(x, axis) - np.asarray(mean).astype(np.longdouble)[:, None]
        sum_dy = dy.sum(axis=1)
        sum_dy_xmu = (dy * xmu).sum(axis=1)
        inner = dy
        if training and dy.shape[1]:
            slope = np.square(invstd.astype(np.longdouble)) * sum_dy_xmu / dy.shape[1]
            inner = dy - sum_dy[:, None] / dy.shape[1] - xmu * slope[:, None]
        rows = (inner * scale[:, None]).astype(np.float64)
        dweight = (sum_dy_xmu * invstd).astype(np.float64)
    moved = np.moveaxis(x, axis, 0).shape
    dx = np.moveaxis(rows.reshape(moved), 0, axis)
    return ReferenceGradients(dx, dweight, sum_dy.astype(np.float64))


def update_running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    m: ReferenceMoments,
    *,
    momentum: float = 0.1,
    correction: float = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(1 - momentum) * old + momentum * new`` for the running mean and variance.

    The new variance is ``m.m2 / (m.count - correction)``.

    Examples
    --------
    >>> import numpy as np
    >>> from bnnumba import reference
    >>> m = reference.moments(np.array([[1.0], [3.0]]))
    >>> mean, var = reference.update_running(np.zeros(1), np.ones(1), m, momentum=0.5)
    >>> mean.tolist(), var.tolist()
    ([1.0], [1.5])
    """
    var = m.m2 / (m.count - correction)
    old_mean, old_var = running_mean.astype(np.float64), running_var.astype(np.float64)
    return (
        (1 - momentum) * old_mean + momentum * m.mean,
        (1 - momentum) * old_var + momentum * var,
    )
