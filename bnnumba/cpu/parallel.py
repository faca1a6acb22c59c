"""Drivers: they deal out the work items of the range kernels to threads, or run them in order.

Each driver is one function compiled twice, with and without threads, and is given every argument:
Numba's dispatch of omitted ones is slow. Results are the same to the bit either way.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from .jit import drivers
from .moments import WORKSPACE
from .ranges import (
    backward_range,
    coefficients_range,
    collect_range,
    forward_range,
    input_coefficients_range,
    input_range,
    merge_range,
    normalize_range,
    reduce_range,
    sums_range,
)


def empty_coefficients(x, rows):
    """Return an empty (rows, channels) array of the precision that `x` is computed in."""
    return np.empty((rows, x.shape[1]), np.float64 if x.dtype == np.float64 else np.float32)


@overload(empty_coefficients)
def _empty_coefficients(x, rows):
    dtype = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, rows: np.empty((rows, x.shape[1]), dtype)


def _forward(x, block, plan, weight, bias, eps, stats, y, streaming):
    partial = np.empty((plan[0], 2, x.shape[1]))
    coefs = empty_coefficients(x, 3)
    for item in prange((x.shape[1] + block - 1) // block):
        work = np.empty(block * WORKSPACE)
        first = np.int64(item)
        forward_range(
            first, first + 1, x, block, plan, weight, bias, eps, work, partial, coefs, stats, y,
            streaming,
        )  # fmt: skip


def _collect(x, block, plan, eps, stats):
    channels = x.shape[1]
    partial = np.empty((plan[0], 2, channels))
    for item in prange(plan[0] * ((channels + block - 1) // block)):
        work = np.empty(block * WORKSPACE)
        first = np.int64(item)
        collect_range(first, first + 1, x, block, plan, work, partial)
    s = x.shape[2] if x.ndim == 3 else 1
    merge_range(0, channels, x.shape[0], s, plan, partial, eps, stats)


def _normalize(x, block, plan, weight, bias, mean, invstd, y, streaming):
    channels = x.shape[1]
    coefs = empty_coefficients(x, 3)
    coefficients_range(0, channels, mean, invstd, weight, bias, coefs)
    for item in prange(plan[0] * ((channels + block - 1) // block)):
        first = np.int64(item)
        normalize_range(first, first + 1, x, block, plan, coefs, y, streaming)


def _backward(x, dy, block, plan, weight, stats, dx, dweight, dbias, streaming):
    partial = np.empty((plan[0], 2, x.shape[1]))
    sums = np.empty((2, x.shape[1]))
    coefs = empty_coefficients(x, 4)
    for item in prange((x.shape[1] + block - 1) // block):
        work = np.empty(block * WORKSPACE)
        first = np.int64(item)
        backward_range(
            first, first + 1, x, dy, block, plan, weight, stats, work, partial, sums, coefs,
            dx, dweight, dbias, streaming,
        )  # fmt: skip


def _reduce(x, dy, block, plan, mean, invstd, sums, dweight, dbias):
    channels = x.shape[1]
    partial = np.empty((plan[0], 2, channels))
    for item in prange(plan[0] * ((channels + block - 1) // block)):
        work = np.empty(block * WORKSPACE)
        first = np.int64(item)
        reduce_range(first, first + 1, x, dy, block, plan, mean, work, partial)
    sums_range(0, channels, plan, partial, invstd, sums, dweight, dbias)


def _input(x, dy, block, plan, weight, mean, invstd, sums, count, dx, streaming):
    channels = x.shape[1]
    coefs = empty_coefficients(x, 4)
    input_coefficients_range(0, channels, count, mean, invstd, sums, weight, coefs)
    for item in prange(plan[0] * ((channels + block - 1) // block)):
        first = np.int64(item)
        input_range(first, first + 1, x, dy, block, plan, coefs, dx, streaming)


forward_parallel, forward_serial = drivers(_forward)
collect_parallel, collect_serial = drivers(_collect)
normalize_parallel, normalize_serial = drivers(_normalize)
backward_parallel, backward_serial = drivers(_backward)
reduce_parallel, reduce_serial = drivers(_reduce)
input_parallel, input_serial = drivers(_input)
