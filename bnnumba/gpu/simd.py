"""Vectors of floats on the GPU, and their arithmetic.

A `Vector` is a fixed number of float32 or float64 numbers in registers. Elements in memory are
*stored* values: what 16 bytes (or fewer, where rows are not aligned to more) hold of float32,
float64, float16 or bfloat16. They are moved as they are (`bnnumba.gpu.memory`), and widened to
vectors for arithmetic.
"""

import operator

from llvmlite import ir

from .jit import SIMULATED

if SIMULATED:
    from .simulator import (
        atomic_add,
        counted,
        drawn,
        exponent,
        fma,
        inverse_root,
        larger,
        like,
        pause,
        quotient,
        smaller,
    )
else:
    from numba.cuda import cgutils, types
    from numba.cuda.extending import intrinsic, lower_builtin, models, register_model
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

__all__ = [
    "KINDS",
    "atomic_add",
    "counted",
    "drawn",
    "exponent",
    "fma",
    "inverse_root",
    "larger",
    "like",
    "pause",
    "quotient",
    "smaller",
]

# Name of what is stored, and its bytes.
KINDS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


def constant(value):
    """Return an integer of 32 bits for LLVM."""
    return ir.Constant(I32, value)


if not SIMULATED:

    class Vector(types.Type):
        """A Numba type: a fixed number of floats, held in registers."""

        def __init__(self, scalar, count):
            self.scalar, self.count = scalar, count
            super().__init__(name=f"{scalar}x{count}")

    class Stored(types.Type):
        """A Numba type: as many elements as a vector has, as they are in memory."""

        def __init__(self, kind, count):
            self.kind, self.count = kind, count
            super().__init__(name=f"stored {kind}x{count}")

    @register_model(Vector)
    class _VectorModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, llvm_vector(fe_type))

    @register_model(Stored)
    class _StoredModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, llvm_words(fe_type))

    def llvm_scalar(numba_type):
        return DOUBLE if numba_type == types.float64 else FLOAT

    def llvm_vector(vector):
        return ir.VectorType(llvm_scalar(vector.scalar), vector.count)

    def llvm_words(stored):
        """Return the LLVM type that moves stored elements: 4-byte words, or one 2-byte half."""
        size = KINDS[stored.kind] * stored.count
        return I16 if size == 2 else ir.VectorType(I32, size // 4)

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

    def splat(builder, scalar, count):
        vector = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        for lane in range(count):
            vector = builder.insert_element(vector, scalar, constant(lane))
        return vector

    def each(builder, vector, function):
        """Apply an LLVM-emitting function to every lane."""
        lanes = [
            function(builder.extract_element(vector, constant(i))) for i in range(vector.type.count)
        ]
        found = ir.Constant(ir.VectorType(lanes[0].type, len(lanes)), ir.Undefined)
        for i, lane in enumerate(lanes):
            found = builder.insert_element(found, lane, constant(i))
        return found

    def _library(builder, name, result, *arguments):
        suffix = "f64" if result == DOUBLE else "f32"
        kind = ir.FunctionType(result, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}")
        return builder.call(function, arguments)

    def _asm(builder, result, text, constraints, *arguments, effects=False):
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return builder.call(ir.InlineAsm(kind, text, constraints, effects), arguments)

    @intrinsic
    def like(typingctx, vector, scalar):
        """Return a vector like `vector` with `scalar` in every lane."""

        def codegen(context, builder, sig, args):
            value = context.cast(builder, args[1], sig.args[1], vector.scalar)
            return splat(builder, value, vector.count)

        return vector(vector, scalar), codegen

    @intrinsic
    def fma(typingctx, a, b, c):
        """Return a * b + c in one rounding."""

        def codegen(context, builder, sig, args):
            a, b, c = args
            found = ir.Constant(a.type, ir.Undefined)
            for i in range(a.type.count):
                lanes = [builder.extract_element(v, constant(i)) for v in (a, b, c)]
                value = _library(builder, "fma", a.type.element, *lanes)
                found = builder.insert_element(found, value, constant(i))
            return found

        return a(a, b, c), codegen

    def _chosen(builder, order, a, b):
        """Return a where ``a order b`` holds, else b."""
        return builder.select(builder.fcmp_ordered(order, a, b), a, b)

    @intrinsic
    def larger(typingctx, a, b):
        """Return the larger number in each lane, b where one is NaN."""

        def codegen(context, builder, sig, args):
            return _chosen(builder, ">", *args)

        return a(a, b), codegen

    @intrinsic
    def smaller(typingctx, a, b):
        """Return the smaller number in each lane, b where one is NaN."""

        def codegen(context, builder, sig, args):
            return _chosen(builder, "<", *args)

        return a(a, b), codegen

    @intrinsic
    def inverse_root(typingctx, vector):
        """Return 1 / sqrt(v), and 0 where v is 0."""

        def codegen(context, builder, sig, args):
            scalar = args[0].type.element
            zero, one = ir.Constant(scalar, 0.0), ir.Constant(scalar, 1.0)

            def lane(value):
                root = builder.fdiv(one, _library(builder, "sqrt", scalar, value))
                return builder.select(builder.fcmp_ordered("==", value, zero), zero, root)

            return each(builder, args[0], lane)

        return vector(vector), codegen

    @intrinsic
    def quotient(typingctx, a, b):
        """Return a / b of numbers that are not negative, rounded down.

        Numba's // and % of signed numbers are two divisions, with tests around each: with those a
        block that swept 16 KiB twice took 2932 instructions a warp, with five of these, and
        shifts, 2013.
        """

        def codegen(context, builder, sig, args):
            return builder.udiv(*args)

        return types.int64(types.int64, types.int64), codegen

    @intrinsic
    def exponent(typingctx, power):
        """Return the logarithm of a power of two."""

        def codegen(context, builder, sig, args):
            return builder.ctpop(builder.sub(args[0], ir.Constant(I64, 1)))

        return types.int64(types.int64), codegen

    def _counter(builder, base, index):
        return builder.add(base, builder.mul(index, ir.Constant(I64, 4)))

    @intrinsic
    def atomic_add(typingctx, address, index, value):
        """Add to the int32 at an index and return what it was before.

        What other threads wrote before their additions is seen after it, and the other way round.
        """

        def codegen(context, builder, sig, args):
            old = _asm(
                builder, I32, "atom.acq_rel.gpu.global.add.s32 $0, [$1], $2;", "=r,l,r,~{memory}",
                _counter(builder, *args[:2]), builder.trunc(args[2], I32), effects=True,
            )  # fmt: skip
            return builder.sext(old, I64)

        return types.int64(types.int64, types.int64, types.int64), codegen

    @intrinsic
    def drawn(typingctx, address, index):
        """Add 1 to the int32 at an index and return what it was before, in no order with others.

        In order it would wait for all that the thread wrote, and empty the cache.
        """

        def codegen(context, builder, sig, args):
            old = _asm(
                builder, I32, "atom.relaxed.gpu.global.add.s32 $0, [$1], $2;", "=r,l,r,~{memory}",
                _counter(builder, *args), constant(1), effects=True,
            )  # fmt: skip
            return builder.sext(old, I64)

        return types.int64(types.int64, types.int64), codegen

    @intrinsic
    def counted(typingctx, address, index):
        """Return the int32 at an index, which others add to, in no order with what they wrote."""

        def codegen(context, builder, sig, args):
            now = _asm(
                builder, I32, "ld.relaxed.gpu.global.s32 $0, [$1];", "=r,l,~{memory}",
                _counter(builder, *args), effects=True,
            )  # fmt: skip
            return builder.sext(now, I64)

        return types.int64(types.int64, types.int64), codegen

    @intrinsic
    def pause(typingctx):
        """Leave the multiprocessor to other warps for a moment."""

        def codegen(context, builder, sig, args):
            _asm(builder, ir.VoidType(), "nanosleep.u32 64;", "", effects=True)
            return context.get_dummy_value()

        return types.void(), codegen

    def widened(builder, value, stored):
        """Convert stored elements to a vector."""
        count, kind = stored.count, stored.kind
        if kind in ("float32", "float64"):
            return builder.bitcast(value, llvm_vector(vector_of(stored)))
        bits = []
        if kind == "float16":
            # As assembly: LLVM makes eight small loads of one whose parts are converted.
            if count == 1:
                bits.append(_asm(builder, FLOAT, "cvt.f32.f16 $0, $1;", "=f,h", value))
            for i in range(count // 2):
                pair = _asm(
                    builder, ir.LiteralStructType([FLOAT, FLOAT]),
                    "{.reg .b16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b;}",
                    "=f,=f,r", builder.extract_element(value, constant(i)),
                )  # fmt: skip
                bits += [builder.extract_value(pair, 0), builder.extract_value(pair, 1)]
        else:
            if count == 1:
                bits.append(builder.shl(builder.zext(value, I32), constant(16)))
            for i in range(count // 2):  # the lower half of a word is the earlier element
                word = builder.extract_element(value, constant(i))
                bits += [builder.shl(word, constant(16)), builder.and_(word, constant(0xFFFF0000))]
            bits = [builder.bitcast(lane, FLOAT) for lane in bits]
        found = ir.Constant(ir.VectorType(FLOAT, count), ir.Undefined)
        for i, lane in enumerate(bits):
            found = builder.insert_element(found, lane, constant(i))
        return found

    def narrowed(builder, value, stored):
        """Convert a vector to stored elements, rounding to nearest even."""
        count, kind = stored.count, stored.kind
        if kind in ("float32", "float64"):
            return builder.bitcast(value, llvm_words(stored))
        name = "f16" if kind == "float16" else "bf16"
        lanes = [builder.extract_element(value, constant(i)) for i in range(count)]
        if count == 1:
            return _asm(builder, I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", lanes[0])
        found = ir.Constant(llvm_words(stored), ir.Undefined)
        for i in range(count // 2):
            text = f"cvt.rn.{name}x2.f32 $0, $1, $2;"
            word = _asm(builder, I32, text, "=r,f,f", lanes[2 * i + 1], lanes[2 * i])
            found = builder.insert_element(found, word, constant(i))
        return found

    def vector_of(stored):
        return Vector(types.float64 if stored.kind == "float64" else types.float32, stored.count)
