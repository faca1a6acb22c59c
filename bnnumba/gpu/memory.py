"""Everything that reads or writes memory, or another thread's registers, on the GPU.

Elements move between global memory, shared memory and registers as they are stored
(`bnnumba.gpu.simd`). 16-byte accesses come only from such intrinsics. The caller guarantees the
alignment: an access is as wide as its vector.
"""

from types import SimpleNamespace

import numpy as np
from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from .simd import (
    DOUBLE,
    I32,
    I64,
    KINDS,
    Stored,
    Vector,
    constant,
    each,
    llvm_scalar,
    llvm_vector,
    llvm_words,
    narrowed,
    splat,
    vector_of,
    widened,
)

__all__ = ["machine"]

_GLOBAL, _SHARED = 1, 3


def _at(builder, address, index, size, element, space):
    offset = builder.mul(index, ir.Constant(I64, size))
    return builder.inttoptr(builder.add(address, offset), ir.PointerType(element, space))


def _bytes(real):
    return 8 if real == types.float64 else 4


def _shared_base(builder):
    module = builder.module
    if "bnnumba_shared" not in module.globals:
        kind = ir.ArrayType(ir.IntType(8), 0)
        memory = ir.GlobalVariable(module, kind, "bnnumba_shared", _SHARED)
        memory.linkage, memory.align = "external", 16
    return builder.ptrtoint(module.get_global("bnnumba_shared"), I64)


def _shuffle(builder, value, distance):
    """Return the lanes of the thread `distance` after this one in the warp."""
    kind = ir.FunctionType(I32, [I32] * 4)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.nvvm.shfl.sync.down.i32")
    words = value.type.count * (2 if value.type.element == DOUBLE else 1)
    bits = builder.bitcast(value, ir.VectorType(I32, words))
    moved = each(
        builder, bits, lambda w: builder.call(function, [constant(-1), w, distance, constant(31)])
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
    vector = vector_of(stored)
    real = vector.scalar
    row = Vector(real, columns)
    param = types.float64 if parameter == "float64" else types.float32
    words, size = llvm_words(stored), KINDS[kind]
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
            return widened(builder, args[0], stored)

        return vector(stored), codegen

    @intrinsic
    def narrow(typingctx, value):
        """Return a vector as elements to store."""

        def codegen(context, builder, sig, args):
            return narrowed(builder, args[0], stored)

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
        llvm = llvm_vector(vector_type)

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

    def row_pair(element, alignment):
        llvm = ir.VectorType(llvm_scalar(element), columns)
        bytes_of = _bytes(element)

        def convert(builder, value, target):
            if value.type == target:
                return value
            wider = target.element == DOUBLE
            return builder.fpext(value, target) if wider else builder.fptrunc(value, target)

        @intrinsic
        def read(typingctx, address, index):
            def codegen(context, builder, sig, args):
                at = _at(builder, *args, bytes_of, llvm, _GLOBAL)
                return convert(builder, builder.load(at, align=alignment), llvm_vector(row))

            return row(types.int64, types.int64), codegen

        @intrinsic
        def write(typingctx, address, index, value):
            def codegen(context, builder, sig, args):
                at = _at(builder, *args[:2], bytes_of, llvm, _GLOBAL)
                builder.store(convert(builder, args[2], llvm), at, align=alignment)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, row), codegen

        return read, write

    @intrinsic
    def spread(typingctx, value):
        """Return one number per channel as one per lane."""

        def codegen(context, builder, sig, args):
            if columns == count:
                return args[0]
            return splat(builder, builder.extract_element(args[0], constant(0)), count)

        return vector(row), codegen

    @intrinsic
    def head(typingctx, value):
        """Return one number per channel: every lane, or the first of one channel's."""

        def codegen(context, builder, sig, args):
            if columns == count:
                return args[0]
            return splat(builder, builder.extract_element(args[0], constant(0)), 1)

        return row(vector), codegen

    def rotated(distance):
        @intrinsic
        def rotate(typingctx, value):
            def codegen(context, builder, sig, args):
                order = [(i + distance) % count for i in range(count)]
                mask = ir.Constant(ir.VectorType(I32, count), order)
                return builder.shuffle_vector(args[0], args[0], mask)

            return vector(vector), codegen

        return rotate

    @intrinsic
    def after(typingctx, value, distance):
        """Return the value of the thread `distance` after this one in the warp."""

        def codegen(context, builder, sig, args):
            return _shuffle(builder, args[0], builder.trunc(args[1], I32))

        return value(value, types.int64), codegen

    @intrinsic
    def zero_row(typingctx):
        """Return 0 for each channel."""

        def codegen(context, builder, sig, args):
            return ir.Constant(llvm_vector(row), None)

        return row(), codegen

    @intrinsic
    def zero(typingctx):
        """Return 0 in each lane."""

        def codegen(context, builder, sig, args):
            return ir.Constant(llvm_vector(vector), None)

        return vector(), codegen

    @intrinsic
    def take_count(typingctx, offset):
        """Return a number from shared memory."""

        def codegen(context, builder, sig, args):
            at = _at(builder, _shared_base(builder), args[0], 1, llvm_scalar(real), _SHARED)
            return builder.load(at)

        return real(types.int64), codegen

    @intrinsic
    def leave_count(typingctx, offset, value):
        """Put a number into shared memory."""

        def codegen(context, builder, sig, args):
            at = _at(builder, _shared_base(builder), args[0], 1, llvm_scalar(real), _SHARED)
            builder.store(args[1], at)
            return context.get_dummy_value()

        return types.void(types.int64, real), codegen

    @intrinsic
    def take_ticket(typingctx):
        """Return the number left at the beginning of shared memory."""

        def codegen(context, builder, sig, args):
            base = _shared_base(builder)
            return builder.load(builder.inttoptr(base, ir.PointerType(I64, _SHARED)))

        return types.int64(), codegen

    @intrinsic
    def leave_ticket(typingctx, value):
        """Put a number at the beginning of shared memory."""

        def codegen(context, builder, sig, args):
            base = _shared_base(builder)
            builder.store(args[0], builder.inttoptr(base, ir.PointerType(I64, _SHARED)))
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    @intrinsic
    def count_after(typingctx, value, distance):
        """Return the number of the thread `distance` after this one in the warp."""

        def codegen(context, builder, sig, args):
            found = _shuffle(builder, splat(builder, args[0], 1), builder.trunc(args[1], I32))
            return builder.extract_element(found, constant(0))

        return real(real, types.int64), codegen

    take, leave = shared_pair(row)
    # Statistics and partial results are ours, their rows as wide as accesses; parameters are not.
    read, write = row_pair(real, min(16, columns * _bytes(real)))
    read_param, write_param = row_pair(param, _bytes(param))
    return SimpleNamespace(
        size=KINDS[kind], count=count, columns=columns,
        real=np.float64 if real == types.float64 else np.float32,
        fetch=fetch, put=put, widen=widen, narrow=narrow, kept=kept, keep=keep,
        take=take, leave=leave, take_count=take_count, leave_count=leave_count,
        take_ticket=take_ticket, leave_ticket=leave_ticket,
        read=read, write=write, read_param=read_param, write_param=write_param,
        spread=spread, head=head, after=after, count_after=count_after,
        rotate1=rotated(1), rotate2=rotated(2), rotate4=rotated(4),
        zero=zero, zero_row=zero_row,
    )  # fmt: skip
