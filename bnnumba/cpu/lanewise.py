"""Arithmetic on the vectors of `bnnumba.cpu.simd`, lane by lane."""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import DOUBLE, FLOAT, I64, emit_llvm, emit_splat, f32x16, vector_of


def _zero_where(builder, condition, value):
    return builder.select(condition, ir.Constant(value.type, None), value)


@intrinsic
def fma(typingctx, a, b, c):
    """Return ``a * b + c``, in one rounding where the CPU has the instruction.

    There always: a product and a sum that may be contracted were not in a loop over parts of
    vectors on aarch64, so that bits depended on the number of threads.
    """

    def codegen(context, builder, sig, args):
        kind = args[0].type
        return emit_llvm(builder, "fmuladd", kind, kind, *args)

    return a(a, b, c), codegen


@intrinsic
def difference(typingctx, value, pivot):
    """Return ``value - pivot``, or without an operation the value, where the pivot is None.

    The pivot may be one number for all lanes.
    """
    if isinstance(pivot, types.NoneType):
        return value(value, pivot), lambda context, builder, sig, args: args[0]

    def codegen(context, builder, sig, args):
        value, pivot = args
        if pivot.type == DOUBLE:
            pivot = emit_splat(builder, pivot, value.type.count)
        return builder.fsub(value, pivot)

    return value(value, pivot), codegen


@intrinsic
def inverse_root(typingctx, value):
    """Return 1 / sqrt of each lane, and 0 where it is 0."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        one = emit_splat(builder, ir.Constant(kind.element, 1.0), kind.count)
        # The root of infinity is one that 1 is divided by without an exception, which programs may
        # trap. LLVM undoes a choice between the result and 0 that comes with another operand.
        no_value = builder.fcmp_ordered("==", args[0], ir.Constant(kind, None))
        infinite = emit_splat(builder, ir.Constant(kind.element, math.inf), kind.count)
        some = builder.select(no_value, infinite, args[0])
        return builder.fdiv(one, emit_llvm(builder, "sqrt", kind, kind, some))

    return value(value), codegen


@intrinsic
def rounded(typingctx, array, value):
    """Return a float64, or lanes of it, rounded to the precision that `array` is computed in."""
    single = vector_of(array) is f32x16

    def codegen(context, builder, sig, args):
        kind = args[1].type
        narrow = ir.VectorType(FLOAT, kind.count) if isinstance(kind, ir.VectorType) else FLOAT
        return builder.fpext(builder.fptrunc(args[1], narrow), kind) if single else args[1]

    return value(array, value), codegen


@intrinsic
def bounded(typingctx, array, value):
    """Return lanes of float64, or where only float64 has room for one the largest float32.

    Where `array` has elements of float32, that is: times 0, infinity would be NaN.
    """
    single = array.dtype == types.float32

    def codegen(context, builder, sig, args):
        value = args[1]
        if not single:
            return value

        def every(number):
            return ir.Constant(value.type, [number] * value.type.count)

        largest = 3.4028234663852886e38
        above = builder.and_(
            builder.fcmp_ordered(">", value, every(largest)),
            builder.fcmp_ordered("<", value, every(float("inf"))),
        )
        below = builder.and_(
            builder.fcmp_ordered("<", value, every(-largest)),
            builder.fcmp_ordered(">", value, every(float("-inf"))),
        )
        bound = builder.select(above, every(largest), value)
        return builder.select(below, every(-largest), bound)

    return value(array, value), codegen


@intrinsic
def canonical(typingctx, value):
    """Return lanes of float64, or where one is NaN that of ``math.nan``; see `narrowed`."""

    def codegen(context, builder, sig, args):
        # As integers, as LLVM may take one NaN for another.
        kind = args[0].type
        wide = ir.VectorType(I64, kind.count)
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        nan = ir.Constant(wide, [0x7FF8 << 48] * kind.count)
        bits = builder.select(is_nan, nan, builder.bitcast(args[0], wide))
        return builder.bitcast(bits, kind)

    return value(value), codegen


@intrinsic
def positive_part(typingctx, value):
    """Return each lane, or 0 where it is negative; NaN stays."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        return _zero_where(builder, builder.fcmp_ordered("<", args[0], zero), args[0])

    return value(value), codegen


@intrinsic
def or_zero(typingctx, value):
    """Return each lane, or 0 where it is NaN."""

    def codegen(context, builder, sig, args):
        return _zero_where(builder, builder.fcmp_unordered("uno", args[0], args[0]), args[0])

    return value(value), codegen


@intrinsic
def zero_where_less(typingctx, value, a, b):
    """Return each lane of a value, or 0 where a is less than b."""

    def codegen(context, builder, sig, args):
        value, a, b = args
        return _zero_where(builder, builder.fcmp_ordered("<", a, b), value)

    return value(value, a, b), codegen


@intrinsic
def middle(typingctx, a, b, c):
    """Return the middle one of three, lane by lane."""

    def codegen(context, builder, sig, args):
        def less(u, v):
            return builder.fcmp_ordered("<", u, v)

        a, b, c = args
        low, high = builder.select(less(b, a), b, a), builder.select(less(b, a), a, b)
        at_most = builder.select(less(high, c), high, c)
        return builder.select(less(at_most, low), low, at_most)

    return a(a, b, c), codegen
