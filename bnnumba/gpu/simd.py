"""Vectors of floats on the GPU, and everything that reads or writes memory.

A `Vector` is a fixed number of float32 or float64 numbers in registers. Elements in memory are
*stored* values: what 16 bytes (or fewer, where rows are not aligned to more) hold of float32,
float64, float16 or bfloat16; they move between global memory, shared memory and registers as they
are, and are widened to vectors for arithmetic. 16-byte accesses come only from such intrinsics.

The caller guarantees the alignment: an access is as wide as its vector.
"""

import operator
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from .jit import SIMULATED

if SIMULATED:
    from .simulator import atomic_add, fma, inverse_root, larger, like, machine, smaller
else:
    from numba.cuda import cgutils, types
    from numba.cuda.extending import intrinsic, lower_builtin, models, register_model
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

__all__ = ["KINDS", "atomic_add", "fma", "inverse_root", "larger", "like", "machine", "smaller"]

# Name of what is stored, and its bytes.
KINDS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_GLOBAL, _SHARED = 1, 3


def _int(value):
    return ir.Constant(_I32, value)


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
            super().__init__(dmm, fe_type, _vector(fe_type))

    @register_model(Stored)
    class _StoredModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, _words(fe_type))

    def _scalar(numba_type):
        return _DOUBLE if numba_type == types.float64 else _FLOAT

    def _vector(vector):
        return ir.VectorType(_scalar(vector.scalar), vector.count)

    def _words(stored):
        """Return the LLVM type that moves stored elements: 4-byte words, or one 2-byte half."""
        size = KINDS[stored.kind] * stored.count
        return _I16 if size == 2 else ir.VectorType(_I32, size // 4)

    def _at(builder, address, index, size, element, space):
        offset = builder.mul(index, ir.Constant(_I64, size))
        return builder.inttoptr(builder.add(address, offset), ir.PointerType(element, space))

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

    def _splat(builder, scalar, count):
        vector = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        for lane in range(count):
            vector = builder.insert_element(vector, scalar, _int(lane))
        return vector

    def _each(builder, vector, function):
        """Apply an LLVM-emitting function to every lane."""
        lanes = [
            function(builder.extract_element(vector, _int(i))) for i in range(vector.type.count)
        ]
        found = ir.Constant(ir.VectorType(lanes[0].type, len(lanes)), ir.Undefined)
        for i, lane in enumerate(lanes):
            found = builder.insert_element(found, lane, _int(i))
        return found

    def _library(builder, name, result, *arguments):
        suffix = "f64" if result == _DOUBLE else "f32"
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
            return _splat(builder, value, vector.count)

        return vector(vector, scalar), codegen

    @intrinsic
    def fma(typingctx, a, b, c):
        """Return a * b + c in one rounding."""

        def codegen(context, builder, sig, args):
            a, b, c = args
            found = ir.Constant(a.type, ir.Undefined)
            for i in range(a.type.count):
                lanes = [builder.extract_element(v, _int(i)) for v in (a, b, c)]
                value = _library(builder, "fma", a.type.element, *lanes)
                found = builder.insert_element(found, value, _int(i))
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

            return _each(builder, args[0], lane)

        return vector(vector), codegen

    @intrinsic
    def atomic_add(typingctx, address, index, value):
        """Add to the int32 at an index and return what it was before.

        What other threads wrote before their additions is seen after it, and the other way round.
        """

        def codegen(context, builder, sig, args):
            base, index, value = args
            place = builder.add(base, builder.mul(index, ir.Constant(_I64, 4)))
            old = _asm(
                builder, _I32, "atom.acq_rel.gpu.global.add.s32 $0, [$1], $2;",
                "=r,l,r,~{memory}", place, builder.trunc(value, _I32), effects=True,
            )  # fmt: skip
            return builder.sext(old, _I64)

        return types.int64(types.int64, types.int64, types.int64), codegen

    def _widen(builder, value, stored):
        """Convert stored elements to a vector."""
        count, kind = stored.count, stored.kind
        if kind in ("float32", "float64"):
            return builder.bitcast(value, _vector(_vector_of(stored)))
        bits = []
        if kind == "float16":
            # As assembly: LLVM makes eight small loads of one whose parts are converted.
            if count == 1:
                bits.append(_asm(builder, _FLOAT, "cvt.f32.f16 $0, $1;", "=f,h", value))
            for i in range(count // 2):
                pair = _asm(
                    builder, ir.LiteralStructType([_FLOAT, _FLOAT]),
                    "{.reg .b16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b;}",
                    "=f,=f,r", builder.extract_element(value, _int(i)),
                )  # fmt: skip
                bits += [builder.extract_value(pair, 0), builder.extract_value(pair, 1)]
        else:
            if count == 1:
                bits.append(builder.shl(builder.zext(value, _I32), _int(16)))
            for i in range(count // 2):  # the lower half of a word is the earlier element
                word = builder.extract_element(value, _int(i))
                bits += [builder.shl(word, _int(16)), builder.and_(word, _int(0xFFFF0000))]
            bits = [builder.bitcast(lane, _FLOAT) for lane in bits]
        found = ir.Constant(ir.VectorType(_FLOAT, count), ir.Undefined)
        for i, lane in enumerate(bits):
            found = builder.insert_element(found, lane, _int(i))
        return found

    def _narrow(builder, value, stored):
        """Convert a vector to stored elements, rounding to nearest even."""
        count, kind = stored.count, stored.kind
        if kind in ("float32", "float64"):
            return builder.bitcast(value, _words(stored))
        name = "f16" if kind == "float16" else "bf16"
        lanes = [builder.extract_element(value, _int(i)) for i in range(count)]
        if count == 1:
            return _asm(builder, _I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", lanes[0])
        found = ir.Constant(_words(stored), ir.Undefined)
        for i in range(count // 2):
            text = f"cvt.rn.{name}x2.f32 $0, $1, $2;"
            word = _asm(builder, _I32, text, "=r,f,f", lanes[2 * i + 1], lanes[2 * i])
            found = builder.insert_element(found, word, _int(i))
        return found

    def _vector_of(stored):
        return Vector(types.float64 if stored.kind == "float64" else types.float32, stored.count)

    def _shared_base(builder):
        module = builder.module
        if "bnnumba_shared" not in module.globals:
            kind = ir.ArrayType(ir.IntType(8), 0)
            memory = ir.GlobalVariable(module, kind, "bnnumba_shared", _SHARED)
            memory.linkage, memory.align = "external", 16
        return builder.ptrtoint(module.get_global("bnnumba_shared"), _I64)

    def _shuffle(builder, value, distance):
        """Return the lanes of the thread `distance` after this one in the warp."""
        kind = ir.FunctionType(_I32, [_I32] * 4)
        function = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.nvvm.shfl.sync.down.i32"
        )
        words = value.type.count * (2 if value.type.element == _DOUBLE else 1)
        bits = builder.bitcast(value, ir.VectorType(_I32, words))
        moved = _each(
            builder, bits, lambda w: builder.call(function, [_int(-1), w, distance, _int(31)])
        )
        return builder.bitcast(moved, value.type)

    def machine(kind, count, columns, parameter):
        """Return the typed operations of a kernel.

        Parameters
        ----------
        kind : str
            The dtype of the data, a key of `KINDS`.
        count : int
            Elements per access, and lanes of a vector.
        columns : int
            Channels per thread: `count` where channels are contiguous, else 1.
        parameter : str
            The dtype of weight, bias and running statistics.
        """
        stored = Stored(kind, count)
        vector = _vector_of(stored)
        real = vector.scalar
        row = Vector(real, columns)
        param = types.float64 if parameter == "float64" else types.float32
        words, size = _words(stored), KINDS[kind]
        # Accesses wider than 16 bytes do not occur, but rows of parameters are wider in registers.
        width = min(16, size * count)

        @intrinsic
        def fetch(typingctx, address, index):
            """Return the elements stored from an index on, `width` bytes aligned to as much."""

            def codegen(context, builder, sig, args):
                return builder.load(_at(builder, *args, size, words, _GLOBAL), align=width)

            return stored(types.int64, types.int64), codegen

        @intrinsic
        def put(typingctx, address, index, value):
            """Store elements from an index on."""

            def codegen(context, builder, sig, args):
                at = _at(builder, *args[:2], size, words, _GLOBAL)
                builder.store(args[2], at, align=width)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, stored), codegen

        @intrinsic
        def widen(typingctx, value):
            """Return stored elements as a vector."""

            def codegen(context, builder, sig, args):
                return _widen(builder, args[0], stored)

            return vector(stored), codegen

        @intrinsic
        def narrow(typingctx, value):
            """Return a vector as elements to store."""

            def codegen(context, builder, sig, args):
                return _narrow(builder, args[0], stored)

            return stored(vector), codegen

        @intrinsic
        def kept(typingctx, offset):
            """Return the elements kept in shared memory at an offset in bytes."""

            def codegen(context, builder, sig, args):
                at = _at(builder, _shared_base(builder), args[0], 1, words, _SHARED)
                return builder.load(at, align=width)

            return stored(types.int64), codegen

        @intrinsic
        def keep(typingctx, offset, value):
            """Keep elements in shared memory at an offset in bytes."""

            def codegen(context, builder, sig, args):
                at = _at(builder, _shared_base(builder), args[0], 1, words, _SHARED)
                builder.store(args[1], at, align=width)
                return context.get_dummy_value()

            return types.void(types.int64, stored), codegen

        def shared_pair(vector_type):
            bytes_of = (8 if vector_type.scalar == types.float64 else 4) * vector_type.count
            llvm = _vector(vector_type)

            @intrinsic
            def take(typingctx, offset):
                def codegen(context, builder, sig, args):
                    at = _at(builder, _shared_base(builder), args[0], 1, llvm, _SHARED)
                    return builder.load(at, align=min(16, bytes_of))

                return vector_type(types.int64), codegen

            @intrinsic
            def leave(typingctx, offset, value):
                def codegen(context, builder, sig, args):
                    at = _at(builder, _shared_base(builder), args[0], 1, llvm, _SHARED)
                    builder.store(args[1], at, align=min(16, bytes_of))
                    return context.get_dummy_value()

                return types.void(types.int64, vector_type), codegen

            return take, leave

        def row_pair(element):
            llvm = ir.VectorType(_scalar(element), columns)
            bytes_of = 8 if element == types.float64 else 4

            def convert(builder, value, target):
                if value.type == target:
                    return value
                wider = target.element == _DOUBLE
                return builder.fpext(value, target) if wider else builder.fptrunc(value, target)

            @intrinsic
            def read(typingctx, address, index):
                def codegen(context, builder, sig, args):
                    at = _at(builder, *args, bytes_of, llvm, _GLOBAL)
                    return convert(builder, builder.load(at, align=bytes_of), _vector(row))

                return row(types.int64, types.int64), codegen

            @intrinsic
            def write(typingctx, address, index, value):
                def codegen(context, builder, sig, args):
                    at = _at(builder, *args[:2], bytes_of, llvm, _GLOBAL)
                    builder.store(convert(builder, args[2], llvm), at, align=bytes_of)
                    return context.get_dummy_value()

                return types.void(types.int64, types.int64, row), codegen

            return read, write

        @intrinsic
        def spread(typingctx, value):
            """Return one number per channel as one per lane."""

            def codegen(context, builder, sig, args):
                if columns == count:
                    return args[0]
                return _splat(builder, builder.extract_element(args[0], _int(0)), count)

            return vector(row), codegen

        @intrinsic
        def head(typingctx, value):
            """Return one number per channel: every lane, or the first of one channel's."""

            def codegen(context, builder, sig, args):
                if columns == count:
                    return args[0]
                return _splat(builder, builder.extract_element(args[0], _int(0)), 1)

            return row(vector), codegen

        def rotated(distance):
            @intrinsic
            def rotate(typingctx, value):
                def codegen(context, builder, sig, args):
                    order = [(i + distance) % count for i in range(count)]
                    mask = ir.Constant(ir.VectorType(_I32, count), order)
                    return builder.shuffle_vector(args[0], args[0], mask)

                return vector(vector), codegen

            return rotate

        @intrinsic
        def after(typingctx, value, distance):
            """Return the value of the thread `distance` after this one in the warp."""

            def codegen(context, builder, sig, args):
                return _shuffle(builder, args[0], builder.trunc(args[1], _I32))

            return value(value, types.int64), codegen

        @intrinsic
        def zero_row(typingctx):
            """Return 0 for each channel."""

            def codegen(context, builder, sig, args):
                return ir.Constant(_vector(row), None)

            return row(), codegen

        @intrinsic
        def zero(typingctx):
            """Return 0 in each lane."""

            def codegen(context, builder, sig, args):
                return ir.Constant(_vector(vector), None)

            return vector(), codegen

        @intrinsic
        def take_count(typingctx, offset):
            """Return a number from shared memory."""

            def codegen(context, builder, sig, args):
                at = _at(builder, _shared_base(builder), args[0], 1, _scalar(real), _SHARED)
                return builder.load(at)

            return real(types.int64), codegen

        @intrinsic
        def leave_count(typingctx, offset, value):
            """Put a number into shared memory."""

            def codegen(context, builder, sig, args):
                at = _at(builder, _shared_base(builder), args[0], 1, _scalar(real), _SHARED)
                builder.store(args[1], at)
                return context.get_dummy_value()

            return types.void(types.int64, real), codegen

        @intrinsic
        def take_ticket(typingctx):
            """Return the number left at the beginning of shared memory."""

            def codegen(context, builder, sig, args):
                base = _shared_base(builder)
                return builder.load(builder.inttoptr(base, ir.PointerType(_I64, _SHARED)))

            return types.int64(), codegen

        @intrinsic
        def leave_ticket(typingctx, value):
            """Put a number at the beginning of shared memory."""

            def codegen(context, builder, sig, args):
                base = _shared_base(builder)
                builder.store(args[0], builder.inttoptr(base, ir.PointerType(_I64, _SHARED)))
                return context.get_dummy_value()

            return types.void(types.int64), codegen

        @intrinsic
        def count_after(typingctx, value, distance):
            """Return the number of the thread `distance` after this one in the warp."""

            def codegen(context, builder, sig, args):
                found = _shuffle(builder, _splat(builder, args[0], 1), builder.trunc(args[1], _I32))
                return builder.extract_element(found, _int(0))

            return real(real, types.int64), codegen

        take, leave = shared_pair(row)
        read, write = row_pair(real)
        read_param, write_param = row_pair(param)
        return SimpleNamespace(
            kind=kind, size=KINDS[kind], count=count, columns=columns, parameter=parameter,
            real=np.float64 if real == types.float64 else np.float32,
            fetch=fetch, put=put, widen=widen, narrow=narrow, kept=kept, keep=keep,
            take=take, leave=leave, take_count=take_count, leave_count=leave_count,
            take_ticket=take_ticket, leave_ticket=leave_ticket,
            read=read, write=write, read_param=read_param, write_param=write_param,
            spread=spread, head=head, after=after, count_after=count_after,
            rotate1=rotated(1), rotate2=rotated(2), rotate4=rotated(4),
            zero=zero, zero_row=zero_row,
        )  # fmt: skip
