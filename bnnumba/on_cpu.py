"""The functions of `bnnumba.functional` and `bnnumba.moments` for arrays on the CPU.

They get what those have checked of the data and the options; the documentation stands there. What
is the same for arrays on a GPU is `bnnumba.on_device`.
"""

from __future__ import annotations

import numpy as np

from . import cpu
from .dispatch import Array, Library, overlap, share
from .layout import Layout, candidates, fits, nearest, shared_layout
from .results import Gradients, Moments, Saved
from .validation import SEEN_AS, check_channels, check_out, check_running

__all__ = [
    "backward",
    "fold",
    "inference",
    "moments",
    "training",
    "update_running",
]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_NONE: dict[np.dtype, np.ndarray] = {_SINGLE: np.empty(0, _SINGLE), _DOUBLE: np.empty(0, _DOUBLE)}
_NO_RUNNING = (_NONE[_DOUBLE], _NONE[_DOUBLE])
_NO_COUNTER = np.empty(0, np.int64)


def _parameters(
    dtype: np.dtype, weight: np.ndarray | None, bias: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weight and bias in one dtype, and the weight as it is; an empty array stands for none.

    The last one has the dtype of the weight's gradient.
    """
    if weight is None:
        own = dense = _NONE[_DOUBLE if dtype == _DOUBLE else _SINGLE]
    else:
        own, dense = weight, _dense(weight)
    if bias is None:
        return dense, _NONE[own.dtype], own
    shift = _dense(bias)
    if weight is None:
        return _NONE[shift.dtype], shift, own
    return *_alike(dense, shift), own


def _dense(array: np.ndarray) -> np.ndarray:
    """Return values of channels where vectors of them can be read."""
    flags = array.flags
    return array if flags.aligned and flags.c_contiguous else array.copy()


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays in one dtype, as kernels are compiled for."""
    return (a, b) if a.dtype == b.dtype else (a.astype(_DOUBLE), b.astype(_DOUBLE))


def _copied(array: np.ndarray, layout: Layout) -> np.ndarray:
    copy = layout.empty(array)
    copy[...] = array
    return copy


def _own_layout(axis: int, array: np.ndarray) -> tuple[Layout, bool]:
    """Return the layout of one array, and whether it needs no copy."""
    found = candidates(array.shape, array.strides, array.itemsize, axis, cpu.SHORT_ROW)
    if found:
        return found[0], array.flags.aligned
    return nearest(array, axis, cpu.SHORT_ROW), False


def _views(axis: int, arrays: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], np.ndarray | None]:
    """See inputs and, after them, an output alike, copying those whose strides do not allow it.

    Returns the views of the inputs and the view to write the result to, and, where that is not one
    of the output, the array to copy to it afterwards.
    """
    kind = SEEN_AS[arrays[0].dtype]
    layout = shared_layout(axis, arrays, cpu.SHORT_ROW)
    if layout is not None:
        return layout.views(kind, arrays), None
    *inputs, out = arrays
    layout, _ = _own_layout(axis, inputs[0])
    seen = []
    for array in inputs:
        fitting = fits(array, layout, axis, cpu.SHORT_ROW)
        seen.append(array if fitting else _copied(array, layout))
    pending = None if fits(out, layout, axis, cpu.SHORT_ROW) else layout.empty(out)
    seen.append(out if pending is None else pending)
    return layout.views(kind, seen), pending


def _output(
    library: Library, array: np.ndarray, out: Array, **others: np.ndarray | None
) -> np.ndarray:
    """Return `out`, which is like `array` and apart from all others.

    Those are the caller's own: what is computed with may be copies.
    """
    # Not called for a new array: to gather the arguments shows in calls on small arrays.
    found = check_out(out, library, array)
    for name, other in others.items():
        if other is not None:
            overlap("out", found, name, other, in_place=name in ("x", "grad_output"))
    return found


def _running(
    library: Library,
    channels: int,
    running_mean: Array | None,
    running_var: Array | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the running statistics to update, an empty array for one that is not kept."""
    mean = var = _NONE[_DOUBLE]
    if running_mean is not None:
        mean = check_running("running_mean", running_mean, library, channels)
    if running_var is not None:
        var = check_running("running_var", running_var, library, channels)
    return mean, var


def _apart(mean: np.ndarray, var: np.ndarray, **others: np.ndarray | None) -> None:
    """Raise if running statistics share memory with each other or with others of the caller's."""
    overlap("running_var", var, "running_mean", mean, in_place=False)
    for name, other in others.items():
        if other is not None:
            overlap("running_mean", mean, name, other, in_place=False)
            overlap("running_var", var, name, other, in_place=False)


def training(
    library: Library, x: Array, array: np.ndarray, weight: Array | None, bias: Array | None,
    running_mean: Array | None, running_var: Array | None, counter: np.ndarray | None, count: int,
    momentum: float, eps: float, correction: float, axis: int, out: Array | None,
) -> tuple[Array, Saved]:  # fmt: skip
    """Do `batch_norm_training`."""
    channels = array.shape[axis]
    updates = running_mean is not None or running_var is not None
    factor = None if weight is None else check_channels("weight", weight, library, channels)
    offset = None if bias is None else check_channels("bias", bias, library, channels)
    scale, shift, own = _parameters(array.dtype, factor, offset)
    mean, var = _NO_RUNNING
    if updates:
        mean, var = _running(library, channels, running_mean, running_var)
        _apart(mean, var, x=array, weight=factor, bias=offset)
    y = np.empty_like(array) if out is None else _output(
        library, array, out, x=array, weight=factor, bias=offset, running_mean=mean,
        running_var=var,
    )  # fmt: skip
    if array.size:
        (x_view, y_view), pending = _views(axis, (array, y))
        stats = cpu.forward(x_view, channels, scale, shift, eps, y_view)
        if pending is not None:
            y[...] = pending
    else:
        stats = np.zeros((4, channels))
    overwritten = out is not None and share(y, array)
    saved = Saved(x, array, weight, own, stats, count, axis, library, True, overwritten)
    result = library.leave(y) if out is None else out
    if updates and array.size:  # at last: what fails or is interrupted leaves them as they were
        batches = _NO_COUNTER if counter is None else counter
        cpu.update_running(
            mean, var, batches, stats[0], stats[1], float(count), momentum, correction
        )
    return result, saved


def inference(
    library: Library, x: Array, array: np.ndarray, mean: Array, var: Array, weight: Array | None,
    bias: Array | None, eps: float, axis: int, out: Array | None, names: tuple[str, str],
    saves: bool,
) -> tuple[Array, Saved | None]:  # fmt: skip
    """Do `evaluate`."""
    channels = array.shape[axis]
    given_mean = check_channels(names[0], mean, library, channels)
    given_var = check_channels(names[1], var, library, channels)
    factor = None if weight is None else check_channels("weight", weight, library, channels)
    offset = None if bias is None else check_channels("bias", bias, library, channels)
    center, spread = _alike(_dense(given_mean), _dense(given_var))
    scale, shift, own = _parameters(array.dtype, factor, offset)
    y = np.empty_like(array) if out is None else _output(
        library, array, out, x=array, weight=factor, bias=offset,
        **{names[0]: given_mean, names[1]: given_var},
    )  # fmt: skip
    saved = None
    if saves:
        stats = _constant_stats(center, spread, eps)
        count = array.size // channels if channels else 0
        overwritten = out is not None and share(y, array)
        saved = Saved(x, array, weight, own, stats, count, axis, library, False, overwritten)
    if array.size:
        (x_view, y_view), pending = _views(axis, (array, y))
        cpu.infer(x_view, scale, shift, center, spread, eps, y_view)
        if pending is not None:
            y[...] = pending
    return (library.leave(y) if out is None else out), saved


def _constant_stats(mean: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
    """Return the float64 rows mean, var and invstd of given statistics."""
    stats = np.empty((3, mean.size))
    cpu.constant_stats(
        mean.astype(_DOUBLE, copy=False), var.astype(_DOUBLE, copy=False), eps, stats
    )
    return stats


def backward(dy: np.ndarray, saved: Saved, out: Array | None) -> Gradients:
    """Do `batch_norm_backward`."""
    library, array, axis = saved._library, saved._array, saved._axis
    scale = _dense(saved._scale)
    channels = array.shape[axis]
    if out is None:
        dx = np.empty_like(array)
    else:
        weight = None if saved.weight is None else saved._scale
        dx = _output(library, array, out, grad_output=dy, x=array, weight=weight)
    dweight, dbias = np.zeros(channels, scale.dtype), np.zeros(channels, scale.dtype)
    if array.size:
        (x_view, dy_view, dx_view), pending = _views(axis, (array, dy, dx))
        stats = saved._stats
        if saved.training:
            cpu.backward(x_view, dy_view, scale, stats, dx_view, dweight, dbias)
        else:
            sums = np.empty((2, channels))
            no_rest, none = _NONE[_DOUBLE], _NONE[scale.dtype]
            cpu.backward_reduce(x_view, dy_view, stats[0], no_rest, stats[2], sums, dweight, dbias)
            # Constant statistics: dx = dy * invstd * weight, whatever stands in x.
            cpu.normalize(dy_view, scale, none, np.zeros(channels), no_rest, stats[2], dx_view)
        if pending is not None:
            dx[...] = pending
    if out is not None and share(dx, array):
        saved._overwritten = True
    dx = library.leave(dx) if out is None else out
    return Gradients(dx, library.leave(dweight), library.leave(dbias))


def update_running(
    library: Library, running_mean: Array, running_var: Array, m: Moments, momentum: float,
    correction: float,
) -> None:  # fmt: skip
    """Do `update_running`."""
    mean = check_running("running_mean", running_mean, library, m.mean.size)
    var = check_running("running_var", running_var, library, m.mean.size)
    _apart(mean, var, **{"m.mean": m.mean, "m.m2": m.m2})
    if m.count:
        cpu.update_running(
            mean, var, _NO_COUNTER, m.mean, m.m2, float(m.count), momentum, correction
        )


def fold(
    library: Library, kernel: np.ndarray, conv_bias: Array | None, running_mean: Array,
    running_var: Array, weight: Array | None, bias: Array | None, eps: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Do `fold_batch_norm`."""
    channels = kernel.shape[0]
    mean = check_channels("running_mean", running_mean, library, channels)
    var = check_channels("running_var", running_var, library, channels)
    stats = _constant_stats(_dense(mean), _dense(var), eps)
    factor = stats[2]
    offset = -stats[0]
    if conv_bias is not None:
        offset = offset + check_channels("conv_bias", conv_bias, library, channels)
    if weight is not None:
        factor = factor * check_channels("weight", weight, library, channels)
    offset = offset * factor
    if bias is not None:
        offset = offset + check_channels("bias", bias, library, channels)
    folded = kernel * factor.reshape((channels,) + (1,) * (kernel.ndim - 1))
    return library.leave(folded.astype(kernel.dtype)), library.leave(offset.astype(kernel.dtype))


def moments(library: Library, array: np.ndarray, axis: int) -> Moments:
    """Do `moments`."""
    channels = array.shape[axis]
    stats = np.zeros((4, channels))
    if array.size == 0:
        return Moments._with_rest(0, stats[0], stats[1], stats[3])
    layout, without_copy = _own_layout(axis, array)
    if not without_copy:
        array = _copied(array, layout)
    (view,) = layout.views(SEEN_AS[array.dtype], (array,))
    cpu.collect_moments(view, 0.0, stats)
    return Moments._with_rest(array.size // channels, stats[0], stats[1], stats[3])
