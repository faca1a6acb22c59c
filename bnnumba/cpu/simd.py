"""Vectors of fixed width for the CPU kernels: loads, stores and arithmetic with a known order.

A kernel that spells out its vectors adds numbers in the same order on every machine, whatever
the compiler would have made of a loop, and reads every element type alike:

====================  ================  =======================
elements              array dtype here  computed in
====================  ================  =======================
float32               float32           16 lanes of float32
float64               float64           8 lanes of float64
float16               int16             16 lanes of float32
bfloat16              uint16            16 lanes of float32
====================  ================  =======================

Numba cannot read 16-bit floats on the CPU, so arrays of them arrive as views of the integer types
above; the signedness tells them apart. Rows are one-dimensional arrays whose elements stand side
by side; the compiler splits a vector into whatever registers the CPU has.
"""

import ctypes
import operator

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .jit import inlined

__all__ = [
    "BLOCK",
    "PREFETCHED",
    "REPEATED",
    "Row",
    "Vector",
    "blend",
    "f32x16",
    "f64x8",
    "fma",
    "hsum",
    "inverse_root",
    "lanes",
    "load",
    "load_f64",
    "load_f64_part",
    "load_lanes",
    "load_part",
    "positive_part",
    "prefetch",
    "prefetch_block",
    "prefetch_distance",
    "rounded",
    "row_at",
    "splat",
    "splat_f64",
    "store",
    "store_lanes",
    "store_part",
    "stream",
    "unaligned",
]

_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_VECTOR_BYTES = 64

# Elements that a kernel handles between two prefetches.
BLOCK = 64
# Bytes between a prefetch and the use of what is read, measured: 2.8 ms for 100 MB against 3.5 at
# 2 KiB and 5.8 with no prefetch, as the hardware's own prefetcher stops at each 4 KiB page.
PREFETCHED = 8192
# Columns that tables of coefficients have besides one per channel: a vector may be loaded from any.
REPEATED = 16


def _provide_half_conversions():
    """Give LLVM the functions that it calls for float16 on a CPU without F16C."""
    try:
        runtime = ctypes.CDLL("libgcc_s.so.1")
        for name in ("__extendhfsf2", "__truncsfhf2"):
            llvm.add_symbol(name, ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value)
    except (OSError, AttributeError):
        pass  # not there, or older than GCC 12: needed by such CPUs only


_provide_half_conversions()


class Vector(types.Type):
    """A Numba type: a fixed number of floats, held in registers."""

    def __init__(self, scalar, count):
        self.scalar, self.count = scalar, count
        super().__init__(name=f"{scalar}x{count}")


f32x16 = Vector(types.float32, 16)
f64x8 = Vector(types.float64, 8)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = _FLOAT if fe_type.scalar == types.float32 else _DOUBLE
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.count))


class Row(types.Type):
    """A Numba type: where a run of elements of an array begins.

    A slice would do, but for its reference count, which takes longer than a short row, and for the
    check of its index.
    """

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Row({dtype})")


@register_model(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, dmm.lookup(fe_type.dtype).get_data_type().as_pointer())


def _vector_of(array):
    """Return the vector type that the elements of an array or row type are computed in."""
    return f64x8 if array.dtype == types.float64 else f32x16


def _llvm(vector):
    return ir.VectorType(_FLOAT if vector.scalar == types.float32 else _DOUBLE, vector.count)


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


def _data(context, builder, kind, array):
    if isinstance(kind, Row):
        return array
    return context.make_array(kind)(context, builder, array).data


def _pointer(context, builder, array_type, array, index, element, count):
    at = builder.gep(_data(context, builder, array_type, array), [index])
    return builder.bitcast(at, ir.VectorType(element, count).as_pointer())


def _storage(array):
    """Return the LLVM type of one element in memory and its size in bytes."""
    if array.dtype == types.float32:
        return _FLOAT, 4
    if array.dtype == types.float64:
        return _DOUBLE, 8
    return _I16, 2


def _splat(builder, scalar, count):
    vector = ir.VectorType(scalar.type, count)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _mask(builder, live, count):
    lane = ir.Constant(ir.VectorType(_I64, count), list(range(count)))
    return builder.icmp_signed("<", lane, _splat(builder, live, count))


def _widen(builder, array, value, vector):
    """Convert a vector of stored elements to a vector to compute with."""
    count = vector.count
    if array.dtype == types.int16:
        value = builder.bitcast(value, ir.VectorType(_HALF, count))
        value = builder.fpext(value, ir.VectorType(_FLOAT, count))
    elif array.dtype == types.uint16:
        wide = builder.zext(value, ir.VectorType(_I32, count))
        shift = ir.Constant(wide.type, [16] * count)
        value = builder.bitcast(builder.shl(wide, shift), ir.VectorType(_FLOAT, count))
    target = _llvm(vector)
    if value.type == target:
        return value
    if array.dtype == types.int16:
        value = _fence(builder, value)
    return builder.fpext(value, target)


def _fence(builder, value):
    """Keep LLVM from seeing through a vector of float32.

    It would make one conversion from float16 to float64 of two, which AVX512-FP16 has but takes
    longer for (moments of float16: 1.5 times as long).
    """
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(value.type, [value.type]),
        f"llvm.arithmetic.fence.v{value.type.count}f32",
    )
    return builder.call(function, [value])


def _narrow(builder, array, value):
    """Convert a computed vector to stored elements, rounding to nearest even.

    That a selection comes last keeps LLVM from making the conversion a part of the store, where it
    forgets that it should go past the caches.
    """
    count = value.type.count
    stored, wide = ir.VectorType(_I16, count), ir.VectorType(_I32, count)

    def or_nan(bits, nan):
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.select(is_nan, ir.Constant(stored, [nan] * count), bits)

    def every(constant):
        return ir.Constant(wide, [constant] * count)

    if array.dtype == types.int16:
        half = builder.fptrunc(value, ir.VectorType(_HALF, count))
        return or_nan(builder.bitcast(half, stored), 0x7E00)
    if array.dtype == types.uint16:
        bits = builder.bitcast(value, wide)
        odd = builder.and_(builder.lshr(bits, every(16)), every(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, every(0x7FFF))), every(16))
        return or_nan(builder.trunc(rounded, stored), 0x7FC0)  # rounding could make NaN infinity
    return value


def _emit_load(context, builder, array_type, array, index, vector):
    element, size = _storage(array_type)
    at = _pointer(context, builder, array_type, array, index, element, vector.count)
    return _widen(builder, array_type, builder.load(at, align=size), vector)


def _emit_load_part(context, builder, array_type, array, index, live, vector):
    element, size = _storage(array_type)
    stored = ir.VectorType(element, vector.count)
    at = _pointer(context, builder, array_type, array, index, element, vector.count)
    mask = _mask(builder, live, vector.count)
    suffix = {_FLOAT: "f32", _DOUBLE: "f64", _I16: "i16"}[element]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(stored, [at.type, _I32, mask.type, stored]),
        f"llvm.masked.load.v{vector.count}{suffix}.p0",
    )
    value = builder.call(function, [at, _I32(size), mask, ir.Constant(stored, None)])
    return _widen(builder, array_type, value, vector)


@intrinsic
def row_at(typingctx, array, index):
    """Return the row that begins at ``array[index]``, for an index of some axes, not negative."""

    def codegen(context, builder, sig, args):
        view = context.make_array(sig.args[0])(context, builder, args[0])
        at = builder.ptrtoint(view.data, _I64)
        indices = cgutils.unpack_tuple(builder, args[1])
        for stride, i in zip(cgutils.unpack_tuple(builder, view.strides), indices, strict=False):
            at = builder.add(at, builder.mul(stride, i))
        return builder.inttoptr(at, view.data.type)

    return Row(array.dtype)(array, types.UniTuple(types.int64, len(index))), codegen


@intrinsic
def lanes(typingctx, array):
    """Return how many elements of `array` one vector computes on."""
    count = _vector_of(array).count

    def codegen(context, builder, sig, args):
        return _I64(count)

    return types.int64(array), codegen


@intrinsic
def load(typingctx, array, index):
    """Return the vector of elements that begins at ``array[index]``."""
    vector = _vector_of(array)

    def codegen(context, builder, sig, args):
        return _emit_load(context, builder, sig.args[0], *args, vector)

    return vector(array, types.int64), codegen


@intrinsic
def load_f64(typingctx, array, index):
    """Return 8 elements from ``array[index]`` on, as float64."""

    def codegen(context, builder, sig, args):
        return _emit_load(context, builder, sig.args[0], *args, f64x8)

    return f64x8(array, types.int64), codegen


@intrinsic
def load_part(typingctx, array, index, live):
    """Return the first `live` lanes of ``load(array, index)`` and zeros; nothing else is read."""
    vector = _vector_of(array)

    def codegen(context, builder, sig, args):
        return _emit_load_part(context, builder, sig.args[0], *args, vector)

    return vector(array, types.int64, types.int64), codegen


@intrinsic
def load_f64_part(typingctx, array, index, live):
    """Return the first `live` lanes of ``load_f64(array, index)`` and zeros."""

    def codegen(context, builder, sig, args):
        return _emit_load_part(context, builder, sig.args[0], *args, f64x8)

    return f64x8(array, types.int64, types.int64), codegen


@intrinsic
def blend(typingctx, first, second, live):
    """Return the first `live` lanes of one vector and the rest of another."""

    def codegen(context, builder, sig, args):
        first, second, live = args
        return builder.select(_mask(builder, live, first.type.count), first, second)

    return first(first, second, types.int64), codegen


@intrinsic
def splat(typingctx, array, scalar):
    """Return a vector of one float64 scalar, of the kind that `array` is computed in."""
    vector = _vector_of(array)

    def codegen(context, builder, sig, args):
        scalar = args[1]
        if vector is f32x16:
            scalar = builder.fptrunc(scalar, _FLOAT)
        return _splat(builder, scalar, vector.count)

    return vector(array, types.float64), codegen


@intrinsic
def rounded(typingctx, array, scalar):
    """Return a float64 scalar rounded to the precision that `array` is computed in."""
    single = _vector_of(array) is f32x16

    def codegen(context, builder, sig, args):
        if single:
            return builder.fpext(builder.fptrunc(args[1], _FLOAT), _DOUBLE)
        return args[1]

    return types.float64(array, types.float64), codegen


@intrinsic
def splat_f64(typingctx, scalar):
    """Return 8 lanes of one float64 scalar."""

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0], 8)

    return f64x8(types.float64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Return ``a * b + c``, in one rounding where the CPU has the instruction."""

    def codegen(context, builder, sig, args):
        product = builder.fmul(args[0], args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return a(a, b, c), codegen


@intrinsic
def inverse_root(typingctx, value):
    """Return 1 / sqrt of each lane, and 0 where it is 0."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        suffix = {_FLOAT: "f32", _DOUBLE: "f64"}[kind.element]
        root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.v{kind.count}{suffix}"
        )
        one = _splat(builder, ir.Constant(kind.element, 1.0), kind.count)
        inverse = builder.fdiv(one, builder.call(root, [args[0]]))
        zero = ir.Constant(kind, None)
        return builder.select(builder.fcmp_ordered("==", args[0], zero), zero, inverse)

    return value(value), codegen


@intrinsic
def positive_part(typingctx, value):
    """Return each lane, or 0 where it is negative; NaN stays."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return value(value), codegen


@intrinsic
def hsum(typingctx, value):
    """Return the sum of all lanes, added in halves: (0+4, 1+5, ...), then again."""

    def codegen(context, builder, sig, args):
        vector = args[0]
        count = vector.type.count
        while count > 1:
            count //= 2
            low = ir.Constant(ir.VectorType(_I32, count), list(range(count)))
            high = ir.Constant(ir.VectorType(_I32, count), list(range(count, 2 * count)))
            vector = builder.fadd(
                builder.shuffle_vector(vector, vector, low),
                builder.shuffle_vector(vector, vector, high),
            )
        return builder.extract_element(vector, _I32(0))

    return value.scalar(value), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write a vector to the elements from ``array[index]`` on."""

    def codegen(context, builder, sig, args):
        array, index, value = args
        element, size = _storage(sig.args[0])
        count = value.type.count
        at = _pointer(context, builder, sig.args[0], array, index, element, count)
        builder.store(_narrow(builder, sig.args[0], value), at, align=size)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def store_part(typingctx, array, index, live, value):
    """Write the first `live` lanes of a vector; nothing else is touched."""

    def codegen(context, builder, sig, args):
        array, index, live, value = args
        element, size = _storage(sig.args[0])
        count = value.type.count
        at = _pointer(context, builder, sig.args[0], array, index, element, count)
        stored = _narrow(builder, sig.args[0], value)
        mask = _mask(builder, live, count)
        suffix = {_FLOAT: "f32", _DOUBLE: "f64", _I16: "i16"}[element]
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [stored.type, at.type, _I32, mask.type]),
            f"llvm.masked.store.v{count}{suffix}.p0",
        )
        builder.call(function, [stored, at, _I32(size), mask])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, value), codegen


@intrinsic
def stream(typingctx, array, index, value):
    """Write a vector past the caches; ``array[index]`` must be aligned to the vector's bytes."""

    def codegen(context, builder, sig, args):
        array, index, value = args
        element, size = _storage(sig.args[0])
        count = value.type.count
        at = _pointer(context, builder, sig.args[0], array, index, element, count)
        stored = _narrow(builder, sig.args[0], value)
        written = builder.store(stored, at, align=size * count)
        one = ir.Constant(_I32, 1)
        written.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def unaligned(typingctx, array, index):
    """Return how many elements ``array[index]`` stands before the next place to `stream` to."""

    def codegen(context, builder, sig, args):
        array, index = args
        element, size = _storage(sig.args[0])
        at = _pointer(context, builder, sig.args[0], array, index, element, 1)
        missing = builder.and_(builder.neg(builder.ptrtoint(at, _I64)), _I64(_VECTOR_BYTES - 1))
        return builder.udiv(missing, _I64(size))

    return types.int64(array, types.int64), codegen


@intrinsic
def prefetch_distance(typingctx, array):
    """Return how many elements ahead of its use a prefetch pays."""

    def codegen(context, builder, sig, args):
        return _I64(PREFETCHED // _storage(sig.args[0])[1])

    return types.int64(array), codegen


def _emit_prefetch(context, builder, array_type, array, index):
    element, _ = _storage(array_type)
    at = _pointer(context, builder, array_type, array, index, element, 1)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [at.type, _I32, _I32, _I32]),
        "llvm.prefetch.p0",
    )
    # A read, into L1, of data: into L2, Zen 5 took a tenth longer for all steps but inference.
    builder.call(function, [at, _I32(0), _I32(3), _I32(1)])


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of ``array[index]``; any index is harmless."""

    def codegen(context, builder, sig, args):
        _emit_prefetch(context, builder, sig.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def prefetch_block(typingctx, array, index):
    """Ask for the cache lines of 64 elements from ``array[index]`` on; any index is harmless."""

    def codegen(context, builder, sig, args):
        array, index = args
        for offset in range(0, BLOCK, 64 // _storage(sig.args[0])[1]):
            _emit_prefetch(context, builder, sig.args[0], array, builder.add(index, _I64(offset)))
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@inlined
def load_lanes(row, i, live):
    """Return the first `live` of 8 lanes, as float64, and zeros."""
    return load_f64(row, i) if live >= 8 else load_f64_part(row, i, live)


@inlined
def store_lanes(row, i, live, value):
    """Write the first `live` of 8 lanes of float64."""
    if live >= 8:
        store(row, i, value)
    else:
        store_part(row, i, live, value)
