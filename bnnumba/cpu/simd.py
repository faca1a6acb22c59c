"""Vectors of fixed width for the CPU kernels, made, taken apart and added up in a known order.

A kernel that spells out its vectors adds numbers in the same order on every machine, whatever
the compiler would have made of a loop: 16 lanes of float32, or 8 of float64. The compiler splits a
vector into whatever registers the CPU has. Other arithmetic than ``+ - * /`` is the part of
`bnnumba.cpu.lanewise`, how elements of arrays become vectors that of `bnnumba.cpu.storage`, and how
they get there and back that of `bnnumba.cpu.memory`.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
I16, I32, I64 = (ir.IntType(bits) for bits in (16, 32, 64))


class Vector(types.Type):
    """A Numba type: a fixed number of floats, held in registers."""

    def __init__(self, scalar, count):
        self.scalar, self.count = scalar, count
        super().__init__(name=f"{scalar}x{count}")


f32x16 = Vector(types.float32, 16)
f64x8 = Vector(types.float64, 8)
f64x16 = Vector(types.float64, 16)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = FLOAT if fe_type.scalar == types.float32 else DOUBLE
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.count))


def vector_of(array):
    """Return the vector type that the elements of an array or row type are computed in."""
    return f64x8 if array.dtype == types.float64 else f32x16


def llvm_vector(vector):
    return ir.VectorType(FLOAT if vector.scalar == types.float32 else DOUBLE, vector.count)


def _register_operator(op, method):
    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Vector, Vector)
    def lower(context, builder, sig, args):
        return getattr(builder, method)(*args)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
_register_operator(operator.truediv, "fdiv")


def emit_llvm(builder, name, kind, result, *arguments, tail=""):
    """Call LLVM's own function of a name for a kind of vector."""
    suffix = {FLOAT: "f32", DOUBLE: "f64", I16: "i16"}[kind.element]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [argument.type for argument in arguments]),
        f"llvm.{name}.v{kind.count}{suffix}{tail}",
    )
    return builder.call(function, arguments)


def emit_splat(builder, scalar, count):
    """Return a vector of one number."""
    vector = ir.VectorType(scalar.type, count)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def emit_mask(builder, live, count):
    """Return which of `count` lanes are among the first `live`, which is no more than `count`."""
    # Lanes of 32 bits, as a mask of 64 takes AVX2 twice the registers, and a dozen instructions to
    # make it one for elements of float32.
    lane = ir.Constant(ir.VectorType(I32, count), list(range(count)))
    return builder.icmp_signed("<", lane, emit_splat(builder, builder.trunc(live, I32), count))


@intrinsic
def lanes(typingctx, array):
    """Return how many elements of `array` one vector computes on."""
    count = vector_of(array).count

    def codegen(context, builder, sig, args):
        return I64(count)

    return types.int64(array), codegen


@intrinsic
def blend(typingctx, first, second, live):
    """Return the first `live` lanes of one vector and the rest of another."""

    def codegen(context, builder, sig, args):
        first, second, live = args
        return builder.select(emit_mask(builder, live, first.type.count), first, second)

    return first(first, second, types.int64), codegen


@intrinsic
def splat(typingctx, array, scalar):
    """Return a vector of one float64 scalar, of the kind that `array` is computed in."""
    vector = vector_of(array)

    def codegen(context, builder, sig, args):
        scalar = args[1]
        if vector is f32x16:
            scalar = builder.fptrunc(scalar, FLOAT)
        return emit_splat(builder, scalar, vector.count)

    return vector(array, types.float64), codegen


@intrinsic
def zeros_f64x16(typingctx):
    """Return 16 lanes of 0."""

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(f64x16), None)

    return f64x16(), codegen


@intrinsic
def joined(typingctx, a, b):
    """Return 16 lanes, those of two vectors of 8."""

    def codegen(context, builder, sig, args):
        return emit_joined(builder, *args)

    return f64x16(a, b), codegen


def emit_joined(builder, a, b):
    """Return the lanes of two vectors as one."""
    count = 2 * a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), list(range(count))))


def emit_half(builder, value, first):
    """Return half of the lanes of a vector, from a first one on."""
    count = value.type.count // 2
    some = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, value, some)


@intrinsic
def half_sum(typingctx, value):
    """Return 8 lanes, the first half of 16 plus the second."""

    def codegen(context, builder, sig, args):
        return builder.fadd(emit_half(builder, args[0], 0), emit_half(builder, args[0], 8))

    return f64x8(value), codegen


@intrinsic
def splat_f64(typingctx, scalar):
    """Return 8 lanes of one float64 scalar."""

    def codegen(context, builder, sig, args):
        return emit_splat(builder, args[0], 8)

    return f64x8(types.float64), codegen


@intrinsic
def all_zero(typingctx, value):
    """Return whether all lanes are 0."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        other = builder.fcmp_unordered("!=", args[0], ir.Constant(kind, None))
        bits = ir.IntType(kind.count)
        return builder.icmp_signed("==", builder.bitcast(other, bits), bits(0))

    return types.boolean(value), codegen


@intrinsic
def hsum(typingctx, value):
    """Return the sum of all lanes, added in halves: (0+4, 1+5, ...), then again."""

    def codegen(context, builder, sig, args):
        vector = args[0]
        while vector.type.count > 1:
            half = vector.type.count // 2
            low, high = emit_half(builder, vector, 0), emit_half(builder, vector, half)
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, I32(0))

    return value.scalar(value), codegen
