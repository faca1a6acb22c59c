"""The functions of `bnnumba.functional` and `bnnumba.moments` for arrays on a GPU.

They get what those have checked of the data and the options, and return the same; the documentation
stands there. Work is put on the caller's current stream, and nothing waits for it but what must
return numbers to the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import gpu
from .device_arguments import (
    alike,
    apart,
    dense,
    let_follow,
    output,
    overlapping,
    per_channel,
    same_device,
    single,
    views,
)
from .dispatch import Array
from .errors import BnnumbaTypeError
from .gpu.driver import device
from .gpu.launch import Call, copy_array, real_of
from .results import Gradients, Moments, Saved
from .validation import check_running

__all__ = [
    "backward",
    "collect",
    "differentiate",
    "fold",
    "inference",
    "moments",
    "training",
    "update_running",
]

_DOUBLE = np.dtype(np.float64)


class _DeviceSaved(Saved):
    """What a forward pass on a GPU keeps: `mean` and `invstd` stay there, `moments` waits."""

    __slots__ = ("_backward_work", "_work")

    _stats: Any
    # Memory that the kernels of each pass use, a graph of both for as long as it lives.
    _work: Any
    _backward_work: Any

    def __getstate__(self) -> dict[str, Any]:
        """Refuse: a copy would hold addresses of memory that is not its own."""
        msg = "saved: expected arrays on the CPU, to be copied or pickled, got some on a GPU"
        raise BnnumbaTypeError(msg)

    @property
    def mean(self) -> Array:
        """The mean of each channel."""
        return self._stats.row(0).owner

    @property
    def invstd(self) -> Array:
        """1 / sqrt(var + eps) of each channel, 0 where both are 0."""
        return self._stats.row(3).owner

    def _found_moments(self) -> Moments:
        call = _call(self._library, self._array)
        with call.device:
            return _moments_of(call, self._stats, self.count)


def _call(library: Any, array: Any) -> Call:
    return Call(device(array.device), library.stream(array), library)


def _moments_of(call: Call, stats: Any, count: int) -> Moments:
    """Wait for stats and return them as numbers on the host."""
    center, rest, m2, _ = call.device.read(stats, call.stream).astype(_DOUBLE)
    mean = center + rest
    of_mean = mean - center
    with np.errstate(invalid="ignore"):
        left = (center - (mean - of_mean)) + (rest - of_mean)
    left[~np.isfinite(left)] = 0.0
    return Moments._with_rest(count, mean, m2, left)


def training(
    library: Any, x: Array, array: Any, weight: Array | None, bias: Array | None,
    running_mean: Array | None, running_var: Array | None, counter: np.ndarray | None, count: int,
    momentum: float, eps: float, correction: float, axis: int, out: Array | None,
) -> tuple[Array, Saved]:  # fmt: skip
    """Do `batch_norm_training`."""
    channels = array.shape[axis]
    scale, shift = per_channel(library, array, channels, weight=weight, bias=bias)
    mean, var = (
        None if value is None else check_running(name, value, library, channels)
        for name, value in (("running_mean", running_mean), ("running_var", running_var))
    )
    same_device(array, running_mean=mean, running_var=var)
    apart(mean, var, x=array, weight=scale, bias=shift)
    call, work = _call(library, array), None
    y = output(
        library, array, out, x=array, weight=scale, bias=shift, running_mean=mean, running_var=var
    )
    with call.device:
        if array.size:
            view, (seen,), target = views(call, axis, y, array)
            factor, offset = alike(call, scale, shift)
            new_mean, new_var = (m if m is None else dense(call, m) for m in (mean, var))
            stats, work = gpu.forward(
                call, view, seen, target, factor, offset, single(eps, array), new_mean, new_var,
                single(momentum, array), single(count - correction, array),
            )  # fmt: skip
            for given, new in ((y, target), (mean, new_mean), (var, new_var)):
                if new is not given:
                    copy_array(call, new, given)
            let_follow(array, y, scale, shift, mean, var)
            if counter is not None and (mean is not None or var is not None):
                counter += 1
        else:
            stats = call.zeros((4, channels), real_of(array.dtype.name), array)
    overwritten = out is not None and overlapping(y, array)
    saved = _DeviceSaved(
        x, array, weight, scale, stats, count, axis, library, True, overwritten
    )  # fmt: skip
    saved._work = work
    return (y.owner if out is None else out), saved


def inference(
    library: Any, x: Array, array: Any, mean: Array, var: Array, weight: Array | None,
    bias: Array | None, eps: float, axis: int, out: Array | None, names: tuple[str, str],
    saves: bool,
) -> tuple[Array, Saved | None]:  # fmt: skip
    """Do `evaluate`."""
    channels = array.shape[axis]
    named = {names[0]: mean, names[1]: var, "weight": weight, "bias": bias}
    given = per_channel(library, array, channels, **named)
    call = _call(library, array)
    y = output(library, array, out, x=array, **dict(zip(named, given, strict=True)))
    saved = None
    with call.device:
        if saves:
            stats = _constant_stats(call, array, channels, given[0], given[1], single(eps, array))
            count = array.size // channels if channels else 0
            overwritten = out is not None and overlapping(y, array)
            saved = _DeviceSaved(
                x, array, weight, given[2], stats, count, axis, library, False, overwritten
            )  # fmt: skip
        if array.size:
            _infer(call, array, axis, y, given, single(eps, array))
            let_follow(array, y, *given)
    return (y.owner if out is None else out), saved


def _infer(call: Call, array: Any, axis: int, y: Any, given: list[Any], eps: float) -> None:
    """Normalize by given ``mean, var, weight, bias``."""
    view, (seen,), target = views(call, axis, y, array)
    mean, var, scale, shift = alike(call, *given)
    gpu.infer(call, view, seen, target, scale, shift, mean, var, eps)
    if target is not y:
        copy_array(call, target, y)


def _constant_stats(call: Call, x: Any, channels: int, mean: Any, var: Any, eps: float) -> Any:
    """Return the rows of stats of given statistics."""
    stats = call.empty((4, channels), real_of(x.dtype.name), x)
    if channels:
        center, spread = alike(call, mean, var)
        gpu.constant_stats(call, center, spread, eps, stats)
    return stats


def backward(dy: Any, saved: Any, out: Array | None) -> Gradients:
    """Do `batch_norm_backward`."""
    library, array, axis = saved._library, saved._array, saved._axis
    same_device(array, grad_output=dy)
    call = _call(library, array)
    scale, channels = saved._scale, array.shape[axis]
    dx = output(library, array, out, grad_output=dy, x=array, weight=scale)
    dtype = real_of(array.dtype.name) if scale is None else scale.dtype
    with call.device:
        dweight, dbias = (call.empty((channels,), dtype, array) for _ in range(2))
        saved._backward_work = differentiate(
            call, array, dy, axis, scale, saved._stats, saved.training, dx, dweight, dbias
        )
        let_follow(array, dy, scale, dx)
        # Which may be that of the forward pass no more, and `saved` the last to hold x.
        library.keep_for_stream(array, scale, saved._stats)
    if out is not None and overlapping(dx, array):
        saved._overwritten = True
    return Gradients(dx.owner if out is None else out, dweight.owner, dbias.owner)


def differentiate(
    call: Call, array: Any, dy: Any, axis: int, scale: Any, stats: Any, training: bool, dx: Any,
    dweight: Any, dbias: Any,
) -> Any:  # fmt: skip
    """Write gradients, that of the input unless `dx` is None; return what must outlive this."""
    if not array.size:
        for empty in (dweight, dbias):
            call.clear(empty)
        return None
    (scale,) = alike(call, scale)
    if dx is None:
        view, (seen, grad), _ = views(call, axis, None, array, dy)
        return gpu.backward_reduce(call, view, seen, grad, stats, None, dweight, dbias)
    view, (seen, grad), target = views(call, axis, dx, array, dy)
    if training:
        work = gpu.backward(call, view, seen, grad, target, scale, stats, dweight, dbias)
    else:
        work = gpu.backward_reduce(call, view, seen, grad, stats, None, dweight, dbias)
        # Constant statistics: dx = dy * invstd * weight, whatever stands in x.
        pair = view._replace(strides=view.strides[2:])
        gpu.normalize(call, pair, grad, target, scale, None, stats, centered=False)
    if target is not dx:
        copy_array(call, target, dx)
    return work


def update_running(
    library: Any, running_mean: Array, running_var: Array, m: Moments, momentum: float,
    correction: float,
) -> None:  # fmt: skip
    """Do `update_running`, with moments from the host."""
    channels = m.mean.size
    mean = check_running("running_mean", running_mean, library, channels)
    var = check_running("running_var", running_var, library, channels)
    same_device(mean, running_var=var)
    apart(mean, var)
    if not m.count * channels:
        return
    call = _call(library, mean)
    with call.device:
        stats = call.empty((4, channels), _DOUBLE, mean)
        rows = np.stack([m.mean, np.zeros(channels), m.m2, np.zeros(channels)])
        call.device.write(stats, rows, call.stream)
        new_mean, new_var = dense(call, mean), dense(call, var)
        divisor = m.count - correction
        gpu.update_running(call, channels, stats, new_mean, new_var, momentum, divisor)
        for given, new in ((mean, new_mean), (var, new_var)):
            if new is not given:
                copy_array(call, new, given)
        let_follow(mean, var)


def fold(
    library: Any, kernel: Any, conv_bias: Array | None, running_mean: Array, running_var: Array,
    weight: Array | None, bias: Array | None, eps: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Do `fold_batch_norm`: two inferences, of the convolution's weight and of its bias."""
    channels = kernel.shape[0]
    mean, var, scale, shift, start = per_channel(
        library, kernel, channels, running_mean=running_mean, running_var=running_var,
        weight=weight, bias=bias, conv_bias=conv_bias,
    )  # fmt: skip
    call = _call(library, kernel)
    with call.device:
        zeros = call.zeros((channels,), mean.dtype, kernel)
        folded = library.empty_like(kernel)
        start = dense(call, zeros if start is None else start, _DOUBLE)
        offset = call.empty((channels,), _DOUBLE, kernel)
        if kernel.size:
            _infer(call, kernel, 0, folded, [zeros, var, scale, None], single(eps, kernel))
        if channels:
            _infer(call, start, 0, offset, [mean, var, scale, shift], eps)
        offset = dense(call, offset, kernel.dtype)
    return folded.owner, offset.owner


def moments(library: Any, array: Any, axis: int) -> Moments:
    """Do `moments`, which waits for the result."""
    channels = array.shape[axis]
    if not array.size:
        return Moments(0, np.zeros(channels), np.zeros(channels))
    call = _call(library, array)
    with call.device:
        stats, work = collect(call, array, axis)
        found = _moments_of(call, stats, array.size // channels)
        del work  # kept until the kernels are done
        return found


def collect(call: Call, array: Any, axis: int) -> tuple[Any, Any]:
    """Return the stats of each channel, and what must outlive the kernels."""
    view, (seen,), _ = views(call, axis, None, array)
    stats = call.empty((4, array.shape[axis]), real_of(array.dtype.name), array)
    return stats, gpu.collect_moments(call, view, seen, 0.0, stats)
