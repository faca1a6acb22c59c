"""The arguments of calls on a GPU, as its kernels take them: checked, alike, in one view.

What is the same for arrays on the CPU stands in `bnnumba.on_cpu`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .dispatch import Array, overlap, share
from .errors import BnnumbaTypeError
from .gpu.driver import device
from .gpu.launch import Call, canonical, copy_array, real_of, widest_of
from .layout import candidates, fits, nearest, shared_layout
from .validation import check_channels, check_out

__all__ = [
    "alike",
    "apart",
    "dense",
    "let_follow",
    "output",
    "overlapping",
    "per_channel",
    "same_device",
    "single",
    "views",
]

_DOUBLE = np.dtype(np.float64)


def same_device(x: Any, **others: Any) -> None:
    """Raise unless all arrays are on the device of x; wait for the streams that they name."""
    given = {name: array for name, array in others.items() if array is not None}
    for name, array in given.items():
        if array.device != x.device:
            msg = (
                f"{name}: expected an array on GPU {x.device}, as x, got one on GPU {array.device}"
            )
            raise BnnumbaTypeError(msg)
    for stream in {array.stream for array in given.values()} - {None, x.stream}:
        device(x.device).follow(x.stream or 0, stream)


def let_follow(x: Any, *others: Any) -> None:
    """Let the streams that other arrays name wait for what was done with them on that of x."""
    streams = {array.stream for array in others if array is not None} - {None, x.stream}
    for stream in streams:
        device(x.device).follow(stream, x.stream or 0)


def per_channel(library: Any, x: Any, channels: int, **named: Array | None) -> list[Any]:
    """Return optional per-channel arguments."""
    found = {
        name: None if value is None else check_channels(name, value, library, channels)
        for name, value in named.items()
    }
    same_device(x, **found)
    return list(found.values())


def dense(call: Call, array: Any, dtype: np.dtype | None = None) -> Any:
    """Return a contiguous array of a dtype (its own unless given), itself or a copy."""
    dtype = dtype or array.dtype
    if dtype == array.dtype and (array.size < 2 or array.strides == (array.itemsize,)):
        return array
    copy = call.empty(array.shape, dtype, array)
    copy_array(call, array, copy)
    return copy


def alike(call: Call, *arrays: Any) -> list[Any]:
    """Return parameters, where there are any, contiguous and in one dtype."""
    kinds = {array.dtype for array in arrays if array is not None}
    dtype = kinds.pop() if len(kinds) == 1 else _DOUBLE
    return [None if array is None else dense(call, array, dtype) for array in arrays]


def _empty(call: Call, array: Any, layout: Any) -> Any:
    """Return a new array like another one, with the strides of a layout."""
    order = layout.order or tuple(range(array.ndim))
    stored = call.empty(tuple(array.shape[a] for a in order), array.dtype, array)
    return stored.transposed(np.argsort(order))


def views(call: Call, axis: int, out: Any, *inputs: Any) -> tuple[Any, list[Any], Any]:
    """Return a view of all arrays, the inputs and the output that it is of.

    Those whose strides do not allow it are copied; the output then is another array than `out`.
    """
    arrays = [array for array in (*inputs, out) if array is not None]
    first = inputs[0]
    layout = shared_layout(axis, arrays)
    if layout is None:
        own = candidates(first.shape, first.strides, first.itemsize, axis)
        layout = own[0] if own else nearest(first, axis)
        for i, array in enumerate(arrays):
            if not fits(array, layout, axis):
                arrays[i] = _empty(call, array, layout)
                if array is not out:
                    copy_array(call, array, arrays[i])
    kind = first.dtype.name
    view = canonical(
        layout, kind, widest_of(kind, call.device.traits), first.shape,
        tuple(array.strides for array in arrays), tuple(array.address % 16 for array in arrays),
    )  # fmt: skip
    return view, arrays[: len(inputs)], arrays[-1]


def output(library: Any, array: Any, out: Array | None, **others: Any) -> Any:
    """Return where to write what is like `array`: a new array or `out`, apart from all others."""
    if out is None:
        return library.empty_like(array)
    found = check_out(out, library, array)
    same_device(array, out=found)
    for name, other in others.items():
        if other is not None:
            in_place = name in ("x", "grad_output")
            overlap("out", found.shadow(), name, other.shadow(), in_place)
    return found


def apart(mean: Any, var: Any, **others: Any) -> None:
    """Raise if the running statistics share memory, with each other or with other arrays."""
    if mean is not None and var is not None:
        overlap("running_var", var.shadow(), "running_mean", mean.shadow(), in_place=False)
    for name, other in others.items():
        for own_name, own in (("running_mean", mean), ("running_var", var)):
            if other is not None and own is not None:
                overlap(own_name, own.shadow(), name, other.shadow(), in_place=False)


def overlapping(a: Any, b: Any) -> bool:
    """Whether two arrays have memory in common."""
    return share(a.shadow(), b.shadow())


def single(value: float, array: Any) -> float:
    """Return a number as the precision of an array's arithmetic has it."""
    double = real_of(array.dtype.name) == _DOUBLE
    return float(value) if double else ctypes.c_float(value).value
