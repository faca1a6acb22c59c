"""Checks of arguments: errors name the argument, what was expected and what came."""

import math
import numbers
import operator
from typing import Any

import numpy as np

from .dispatch import NUMPY, Library, Viewed, library_of
from .errors import BnnumbaTypeError, BnnumbaValueError

__all__ = [
    "SEEN_AS",
    "byte_order",
    "check_axis",
    "check_channels",
    "check_data",
    "check_eps",
    "check_integer",
    "check_numbers",
    "check_out",
    "check_real",
    "check_running",
    "check_size",
    "is_data",
    "open_data",
]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
# What data of each dtype is seen as by the kernels: Numba cannot read 16-bit floats on the CPU.
SEEN_AS: dict[np.dtype, Any] = {_SINGLE: None, _DOUBLE: None, np.dtype(np.float16): np.int16}


def is_data(dtype: np.dtype) -> bool:
    """Whether arrays of this dtype can be normalized."""
    if dtype not in SEEN_AS and dtype.name == "bfloat16" and dtype.itemsize == 2:
        SEEN_AS[dtype] = np.uint16  # ml_dtypes is imported only by those who use it
    return dtype in SEEN_AS


def byte_order(dtype: np.dtype) -> str:
    """Return what to do about a dtype of another byte order than this machine's."""
    return "" if dtype.isnative else "; convert it to native byte order"


def check_data(argument: str, array: np.ndarray) -> None:
    """Check the dtype and the rank of data."""
    if array.dtype not in SEEN_AS and not is_data(array.dtype):
        hint = byte_order(array.dtype)
        if array.dtype.kind in "biu":
            hint = "; convert it to one of them"
        msg = (
            f"{argument}: expected dtype float32, float64, float16 or bfloat16, "
            f"got {array.dtype}{hint}"
        )
        raise BnnumbaTypeError(msg)
    if array.ndim < 2:
        hint = f"; the values of one channel are {argument}[:, None]" if array.ndim == 1 else ""
        msg = (
            f"{argument}: expected at least 2 dimensions, got {array.ndim} (shape {array.shape})"
            f"{hint}"
        )
        raise BnnumbaValueError(msg)


def check_integer(argument: str, value: Any) -> int:
    """Return an integer, which no bool is."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    shown = "None" if value is None else type(value).__name__
    msg = f"{argument}: expected an integer, got {shown}"
    raise BnnumbaTypeError(msg)


def check_numbers(argument: str, value: Any) -> np.ndarray:
    """Return real numbers, an array of any library on the CPU or what NumPy makes an array of."""
    if hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic)):
        library = library_of(argument, value)
        if library.on_device:
            msg = f"{argument}: expected an array on the CPU, got one on a GPU"
            raise BnnumbaTypeError(msg)
        array = library.enter(argument, value)
    elif isinstance(value, np.ma.MaskedArray):
        array = NUMPY.enter(argument, value)  # raises
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            msg = f"{argument}: expected numbers, got {type(value).__name__}: {error}"
            raise BnnumbaTypeError(msg) from error
    if array.dtype.kind not in "fiu" and not is_data(array.dtype):
        msg = f"{argument}: expected real numbers, got dtype {array.dtype}"
        raise BnnumbaTypeError(msg)
    return array


def check_axis(axis: Any, ndim: int) -> int:
    """Return the channel axis counted from the front."""
    if type(axis) is int and 0 <= axis < ndim:
        return axis
    index = check_integer("axis", axis)
    if not -ndim <= index < ndim:
        msg = f"axis: expected -{ndim} to {ndim - 1} for an array of {ndim} dimensions, got {index}"
        raise BnnumbaValueError(msg)
    return index % ndim


def check_size(shape: tuple[int, ...], axis: int, channels: int) -> None:
    """Check that there are as many channels as were announced."""
    if shape[axis] != channels:
        msg = f"x: expected {channels} channels at axis {axis}, got {shape[axis]} (shape {shape})"
        raise BnnumbaValueError(msg)


def open_data(x: Any, axis: Any) -> tuple[Library, Viewed, int]:
    """Return the library of checked data, the data as its backend takes it, and its axis."""
    kind = type(x)
    if kind is np.ndarray and x.dtype in SEEN_AS and type(axis) is int and 0 <= axis < x.ndim > 1:
        return NUMPY, x, axis  # the usual case, of which there is nothing to say
    library = NUMPY if kind is np.ndarray else library_of("x", x)
    array = library.enter("x", x)
    check_data("x", array)
    return library, array, check_axis(axis, array.ndim)


def check_real(argument: str, value: Any) -> float:
    """Return a finite real number as a float."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if type(value) is int and -(2**53) < value < 2**53:
        return float(value)
    kinds = (numbers.Real, np.floating, np.integer)
    if isinstance(value, (bool, np.bool_, str)) or not isinstance(value, kinds):
        shown = "None" if value is None else type(value).__name__
        msg = f"{argument}: expected a real number, got {shown}"
        raise BnnumbaTypeError(msg)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond any float
        number = math.inf
    if not math.isfinite(number):
        msg = f"{argument}: expected a finite number, got {number}"
        raise BnnumbaValueError(msg)
    return number


def check_eps(eps: Any) -> float:
    """Return eps, which is finite and not negative."""
    if type(eps) is float and 0.0 <= eps < math.inf:
        return eps
    number = check_real("eps", eps)
    if number < 0:
        msg = f"eps: expected a number that is not negative, got {number}"
        raise BnnumbaValueError(msg)
    return number


def check_channels(argument: str, value: Any, library: Library, channels: int) -> Viewed:
    """Return one float32 or float64 value per channel as its backend takes it."""
    array = (
        value if type(value) is np.ndarray and library is NUMPY else library.enter(argument, value)
    )
    dtype = array.dtype
    if dtype not in (_SINGLE, _DOUBLE):
        msg = f"{argument}: expected dtype float32 or float64, got {array.dtype}{byte_order(dtype)}"
        raise BnnumbaTypeError(msg)
    if array.shape != (channels,):
        msg = f"{argument}: expected shape ({channels},), one value per channel, got {array.shape}"
        raise BnnumbaValueError(msg)
    return array


def check_running(argument: str, value: Any, library: Library, channels: int) -> Viewed:
    """Return a running statistic, which must be writable in place."""
    array = check_channels(argument, value, library, channels)
    flags = array.flags
    if not (flags.writeable and flags.aligned):
        lack = "an unaligned" if flags.writeable else "a read-only"
        msg = (
            f"{argument}: expected a writable, aligned array to update in place, got {lack} one"
            f"{library.read_only}"
        )
        raise BnnumbaValueError(msg)
    if not array.flags.c_contiguous and not _spread_out(array):
        msg = f"{argument}: its elements must not overlap, got strides {array.strides}"
        raise BnnumbaValueError(msg)
    return array


def _spread_out(array: Viewed) -> bool:
    """Return whether no two elements share memory."""
    if not array.size:
        return True
    axes = sorted((abs(n), m) for n, m in zip(array.strides, array.shape, strict=True) if m != 1)
    span, nested = array.itemsize, True  # of the axes before, whose steps are smaller
    for stride, extent in axes:
        nested = nested and stride >= span
        span += stride * (extent - 1)
    if nested or span < array.size * array.itemsize:  # too narrow for so many elements
        return nested
    places = np.zeros(1, np.int64)  # as steps of 2 and 3 have it, which pass between each other
    for stride, extent in axes:
        places = (places[:, None] + stride * np.arange(extent)).ravel()
    places.sort()
    return bool(np.all(np.diff(places) >= array.itemsize))


def check_out(value: Any, library: Library, like: Viewed) -> Viewed:
    """Return the output array, which has the shape and dtype of `like`."""
    out = value if type(value) is np.ndarray and library is NUMPY else library.enter("out", value)
    if out.shape != like.shape:
        msg = f"out: expected shape {like.shape}, as the input, got {out.shape}"
        raise BnnumbaValueError(msg)
    if out.dtype != like.dtype:
        msg = (
            f"out: expected dtype {like.dtype}, as the input, got {out.dtype}"
            f"{byte_order(out.dtype)}"
        )
        raise BnnumbaTypeError(msg)
    if not out.flags.writeable:
        msg = f"out: expected a writable array, got a read-only one{library.read_only}"
        raise BnnumbaValueError(msg)
    if not out.flags.c_contiguous and not _spread_out(out):
        msg = f"out: its elements must not overlap, got strides {out.strides}"
        raise BnnumbaValueError(msg)
    return out
