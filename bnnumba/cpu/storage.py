"""Elements as they stand in memory, and their conversion to vectors and back.

A kernel computes on every element type alike:

====================  ================  =======================
elements              array dtype here  computed in
====================  ================  =======================
float32               float32           16 lanes of float32
float64               float64           8 lanes of float64
float16               int16             16 lanes of float32
bfloat16              uint16            16 lanes of float32
====================  ================  =======================

Numba cannot read 16-bit floats on the CPU, so arrays of them arrive as views of the integer types
above; the signedness tells them apart.
"""

import ctypes

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types

from .simd import DOUBLE, FLOAT, I16, I32, emit_llvm, llvm_vector

_HALF = ir.HalfType()


def _provide_half_conversions():
    """Give LLVM the functions that it calls for float16 on a CPU without F16C."""
    try:
        runtime = ctypes.CDLL("libgcc_s.so.1")
        for name in ("__extendhfsf2", "__truncsfhf2"):
            llvm.add_symbol(name, ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value)
    except (OSError, AttributeError):
        pass  # not there, or older than GCC 12: needed by such CPUs only


_provide_half_conversions()


def storage(array):
    """Return the LLVM type of one element in memory and its size in bytes."""
    if array.dtype == types.float32:
        return FLOAT, 4
    if array.dtype == types.float64:
        return DOUBLE, 8
    return I16, 2


def widened(builder, array, value, vector):
    """Convert a vector of stored elements to a vector to compute with."""
    count = vector.count
    if array.dtype == types.int16:
        value = builder.bitcast(value, ir.VectorType(_HALF, count))
        value = builder.fpext(value, ir.VectorType(FLOAT, count))
    elif array.dtype == types.uint16:
        wide = builder.zext(value, ir.VectorType(I32, count))
        shift = ir.Constant(wide.type, [16] * count)
        value = builder.bitcast(builder.shl(wide, shift), ir.VectorType(FLOAT, count))
    target = llvm_vector(vector)
    if value.type == target:
        return value
    if array.dtype == types.int16:
        value = _fence(builder, value)
    return builder.fpext(value, target)


def narrowed(builder, array, value):
    """Convert a computed vector to stored elements, rounding to nearest even.

    A bfloat16 is rounded as an integer. That must not carry a NaN over to another number, as it
    cannot where the NaN came from a bfloat16 or was `canonical`.
    """
    count = value.type.count
    if array.dtype == types.float32 and value.type.element == DOUBLE:
        return builder.fptrunc(value, ir.VectorType(FLOAT, count))
    stored, wide = ir.VectorType(I16, count), ir.VectorType(I32, count)

    def every(constant):
        return ir.Constant(wide, [constant] * count)

    if array.dtype == types.int16:
        bits = builder.bitcast(builder.fptrunc(value, ir.VectorType(_HALF, count)), stored)
    elif array.dtype == types.uint16:
        bits = builder.bitcast(value, wide)
        odd = builder.and_(builder.lshr(bits, every(16)), every(1))
        bits = builder.lshr(builder.add(bits, builder.add(odd, every(0x7FFF))), every(16))
        bits = builder.trunc(bits, stored)
    else:
        return value
    fenced = _fence(builder, builder.bitcast(bits, ir.VectorType(FLOAT, count // 2)))
    return builder.bitcast(fenced, stored)


def _fence(builder, value):
    """Keep LLVM from seeing through a vector of float32.

    It would make one conversion from float16 to float64 of two, which AVX512-FP16 has but takes
    longer for (moments of float16: 1.5 times as long). And it would make a conversion to 16 bits a
    part of the store, where it forgets that this should go past the caches.
    """
    return emit_llvm(builder, "arithmetic.fence", value.type, value.type, value)
