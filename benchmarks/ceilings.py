"""How fast memory is: the unit of time of every table.

Each thread gets one contiguous slice, so nothing but memory (or the start of the threads, for
small arrays) limits these loops.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import THREADS

_LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)


@intrinsic
def _stream(typingctx, source, target, index):
    """Copy 16 floats to a 64-byte aligned place, past the caches."""

    def codegen(context, builder, sig, args):
        def pointer(array_type, array):
            start = context.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(start, [args[2]]), _VECTOR.as_pointer())

        value = builder.load(pointer(sig.args[0], args[0]), align=4)
        store = builder.store(value, pointer(sig.args[1], args[1]), align=4 * _LANES)
        one = ir.Constant(ir.IntType(32), 1)
        store.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.none(source, target, types.int64), codegen


@numba.njit(parallel=True, cache=True)
def copy(x, y, threads):
    """Copy flat x to flat y."""
    for t in numba.prange(threads):
        begin, end = t * x.size // threads, (t + 1) * x.size // threads
        y[begin:end] = x[begin:end]


@numba.njit(parallel=True, cache=True)
def copy_streaming(x, y, threads):
    """Copy flat float32 x to flat y with non-temporal stores."""
    head = (-y.ctypes.data // 4) % _LANES
    vectors = max(0, x.size - head) // _LANES
    tail = head + vectors * _LANES
    for t in numba.prange(threads):
        begin, end = t * vectors // threads, (t + 1) * vectors // threads
        for v in range(begin, end):
            _stream(x, y, head + v * _LANES)
    y[:head] = x[:head]
    y[tail:] = x[tail:]


@numba.njit(parallel=True, cache=True, fastmath=True)
def read(x, partials, threads):
    """Sum flat float32 x, in short runs so that the float32 sums stay right."""
    for t in numba.prange(threads):
        begin, end = t * x.size // threads, (t + 1) * x.size // threads
        total = 0.0
        for start in range(begin, end, 4096):
            run = x[start : min(start + 4096, end)]
            part = np.float32(0)
            for i in range(run.size):
                part += run[i]
            total += part
        partials[t] = total


def copies(x, y):
    """Calls that copy x to y, by name; the fastest is the ceiling."""
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    return {
        "copy": lambda: copy(flat_x, flat_y, THREADS),
        "copy, streaming stores": lambda: copy_streaming(flat_x, flat_y, THREADS),
        "copy, one thread": lambda: np.copyto(flat_y, flat_x),
    }


def reads(x):
    """Calls that read x and return its sum, by name; the fastest is the ceiling."""
    flat, partials = x.reshape(-1), np.zeros(THREADS)

    def with_threads():
        read(flat, partials, THREADS)
        return partials.sum()

    return {"read": with_threads, "read, one thread": flat.sum}
