"""Everything that reads or writes memory in the CPU kernels.

Elements are converted on their way to and from vectors (`bnnumba.cpu.storage`). Rows are
one-dimensional arrays whose elements stand side by side; an access needs no alignment but that of
one element, except for `stream`.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, models, register_model

from .halves import emit_load_halves, emit_store_halves
from .jit import inlined
from .simd import (
    I32,
    I64,
    Vector,
    emit_joined,
    emit_llvm,
    emit_mask,
    f64x8,
    f64x16,
    lanes,
    vector_of,
)
from .storage import narrowed, storage, widened

LINE = 64  # bytes of a cache line, and of a vector

# Columns that tables of coefficients have besides one per channel: a vector may be loaded from any.
REPEATED = 16


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


def _member(context, builder, kind, array, name):
    """Return a member of an array; Numba's own way looks for subclasses of arrays each time."""
    return builder.extract_value(array, context.data_model_manager[kind].get_field_position(name))


def _data(context, builder, kind, array):
    return array if isinstance(kind, Row) else _member(context, builder, kind, array, "data")


def pointer(context, builder, array_type, array, index, element, count):
    """Return where `count` elements of an LLVM type begin in an array or row."""
    at = builder.gep(_data(context, builder, array_type, array), [index])
    return builder.bitcast(at, ir.VectorType(element, count).as_pointer())


def _emit_load(context, builder, array_type, array, index, vector):
    element, size = storage(array_type)
    at = pointer(context, builder, array_type, array, index, element, vector.count)
    return widened(builder, array_type, builder.load(at, align=size), vector)


def _emit_load_part(context, builder, array_type, array, index, live, vector):
    element, size = storage(array_type)
    stored = ir.VectorType(element, vector.count)
    at = pointer(context, builder, array_type, array, index, element, vector.count)
    if size == 2:
        value = emit_load_halves(builder, stored, at, size, live)
    else:
        arguments = at, I32(size), emit_mask(builder, live, vector.count), ir.Constant(stored, None)
        value = emit_llvm(builder, "masked.load", stored, stored, *arguments, tail=".p0")
    return widened(builder, array_type, value, vector)


def _emit_store(context, builder, array_type, array, index, value):
    element, size = storage(array_type)
    at = pointer(context, builder, array_type, array, index, element, value.type.count)
    builder.store(narrowed(builder, array_type, value), at, align=size)


def _emit_store_masked(context, builder, array_type, array, index, live, value):
    element, size = storage(array_type)
    count = value.type.count
    at = pointer(context, builder, array_type, array, index, element, count)
    stored = narrowed(builder, array_type, value)
    arguments = stored, at, I32(size), emit_mask(builder, live, count)
    emit_llvm(builder, "masked.store", stored.type, ir.VoidType(), *arguments, tail=".p0")


@intrinsic
def row_at(typingctx, array, index):
    """Return the row that begins at ``array[index]``, for an index of some axes, not negative."""

    def codegen(context, builder, sig, args):
        data = _member(context, builder, sig.args[0], args[0], "data")
        strides = _member(context, builder, sig.args[0], args[0], "strides")
        at = builder.ptrtoint(data, I64)
        indices = cgutils.unpack_tuple(builder, args[1])
        for stride, i in zip(cgutils.unpack_tuple(builder, strides), indices, strict=False):
            at = builder.add(at, builder.mul(stride, i))
        return builder.inttoptr(at, data.type)

    return Row(array.dtype)(array, types.UniTuple(types.int64, len(index))), codegen


@intrinsic
def moved(typingctx, row, count):
    """Return the row that begins `count` elements after another one."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return row(row, types.int64), codegen


@intrinsic
def shaped(typingctx, like, numbers, first, shape):
    """Return the contiguous array of a shape that begins at ``numbers[first]``.

    Its elements are of the precision that `like` is computed in, and `first` counts those. NumPy's
    ways, ``view`` and ``reshape``, take long to compile.
    """
    kind = types.Array(vector_of(like).scalar, len(shape), "C")

    def codegen(context, builder, sig, args):
        _, numbers, first, shape = args
        data = _member(context, builder, sig.args[1], numbers, "data")
        owner = _member(context, builder, sig.args[1], numbers, "meminfo")
        element, _ = storage(kind)
        at = builder.gep(builder.bitcast(data, element.as_pointer()), [first])
        array = emit_array(context, builder, kind, at, shape, owner)
        return impl_ret_borrowed(context, builder, kind, array)

    return kind(like, numbers, types.int64, shape), codegen


@intrinsic
def allocated(typingctx, count):
    """Return a new array of `count` > 0 numbers, or an empty one where there is no memory for it.

    ``np.empty`` would raise then, and who leaves compiled code by an exception keeps all arrays,
    the caller's as well, for good.
    """
    kind = types.Array(types.float64, 1, "C")

    def codegen(context, builder, sig, args):
        bytes_ = builder.mul(args[0], I64(storage(kind)[1]))
        alignment = context.get_preferred_array_alignment(types.float64)
        meminfo = context.nrt.meminfo_alloc_aligned_unchecked(builder, bytes_, alignment)
        element = storage(kind)[0].as_pointer()
        at = cgutils.alloca_once_value(builder, ir.Constant(element, None))
        size = cgutils.alloca_once_value(builder, I64(0))
        with cgutils.if_likely(builder, cgutils.is_not_null(builder, meminfo)):
            data = context.nrt.meminfo_data(builder, meminfo)
            builder.store(builder.bitcast(data, element), at)
            builder.store(args[0], size)
        shape = cgutils.pack_array(builder, [builder.load(size)])
        return emit_array(context, builder, kind, builder.load(at), shape, meminfo)

    return kind(types.int64), codegen


def emit_array(context, builder, kind, at, shape, meminfo=None):
    """Return the contiguous array of a shape at an address; `meminfo` is Numba's, of its owner."""
    # Not numba.carray, which leaves calls into Numba's runtime.
    from numba.np import arrayobj  # which takes long, and a process may compile nothing

    extents, strides = cgutils.unpack_tuple(builder, shape), [I64(storage(kind)[1])]
    for extent in reversed(extents[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    array = context.make_array(kind)(context, builder)
    arrayobj.populate_array(array, at, extents, strides, strides[-1], meminfo)
    return array._getvalue()


@intrinsic
def load(typingctx, array, index):
    """Return the vector of elements that begins at ``array[index]``."""
    vector = vector_of(array)

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
def load_f64x16(typingctx, array, index):
    """Return 16 elements from ``array[index]`` on, as float64, or None where the array is None."""
    if isinstance(array, types.NoneType):
        return array(array, types.int64), lambda context, builder, sig, args: args[0]

    def codegen(context, builder, sig, args):
        # By halves: so LLVM reads a line in an order in which 67 MB of channels last take 7 % less.
        array, index = args
        return emit_joined(
            builder,
            _emit_load(context, builder, sig.args[0], array, index, f64x8),
            _emit_load(context, builder, sig.args[0], array, builder.add(index, I64(8)), f64x8),
        )

    return f64x16(array, types.int64), codegen


@intrinsic
def element(typingctx, array, index):
    """Return ``array[index]`` as float64."""

    def codegen(context, builder, sig, args):
        single = _emit_load(context, builder, sig.args[0], *args, Vector(types.float64, 1))
        return builder.extract_element(single, I32(0))

    return types.float64(array, types.int64), codegen


@intrinsic
def load_part(typingctx, array, index, live):
    """Return the first `live` lanes of ``load(array, index)`` and zeros; nothing else is read."""
    vector = vector_of(array)

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
def store(typingctx, array, index, value):
    """Write a vector to the elements from ``array[index]`` on."""

    def codegen(context, builder, sig, args):
        _emit_store(context, builder, sig.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def store_part(typingctx, array, index, live, value):
    """Write the first `live` lanes of a vector; nothing else is touched."""

    def codegen(context, builder, sig, args):
        array, index, live, value = args
        element, size = storage(sig.args[0])
        at = pointer(context, builder, sig.args[0], array, index, element, value.type.count)
        emit_store_halves(builder, narrowed(builder, sig.args[0], value), at, size, live)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, value), codegen


@intrinsic
def stream(typingctx, array, index, value):
    """Write a vector past the caches; ``array[index]`` must be aligned to the vector's bytes."""

    def codegen(context, builder, sig, args):
        array, index, value = args
        element, size = storage(sig.args[0])
        count = value.type.count
        at = pointer(context, builder, sig.args[0], array, index, element, count)
        stored = narrowed(builder, sig.args[0], value)
        written = builder.store(stored, at, align=size * count)
        one = ir.Constant(I32, 1)
        written.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def unaligned(typingctx, array, index):
    """Return how many elements ``array[index]`` stands before the next place to `stream` to."""

    def codegen(context, builder, sig, args):
        array, index = args
        element, size = storage(sig.args[0])
        at = pointer(context, builder, sig.args[0], array, index, element, 1)
        missing = builder.and_(builder.neg(builder.ptrtoint(at, I64)), I64(LINE - 1))
        return builder.udiv(missing, I64(size))

    return types.int64(array, types.int64), codegen


@inlined
def adjacent(x):
    """Return whether the rows x[n, c] of x[n, c, s], or x[r] of x[r, q], follow on each other."""
    return x.shape[-2] == 1 or x.strides[-2] == x.shape[-1] * x.itemsize


@inlined
def dense(x):
    """Return whether the images x[n] of x[n, c, s], whose rows are adjacent, are so as well."""
    return x.shape[0] == 1 or x.strides[0] == x.shape[1] * x.shape[2] * x.itemsize


@intrinsic
def load_lanes(typingctx, row, i, live):
    """Return the first `live` of 8 lanes, as float64, and zeros."""
    # In LLVM's terms, as the kernels call it so often that inlining it took long to compile.

    def codegen(context, builder, sig, args):
        row, i, live = args
        with builder.if_else(builder.icmp_signed(">=", live, I64(8))) as (full, part):
            with full:
                whole = _emit_load(context, builder, sig.args[0], row, i, f64x8)
                after_whole = builder.block
            with part:
                some = _emit_load_part(context, builder, sig.args[0], row, i, live, f64x8)
                after_some = builder.block
        value = builder.phi(whole.type)
        value.add_incoming(whole, after_whole)
        value.add_incoming(some, after_some)
        return value

    return f64x8(row, types.int64, types.int64), codegen


@inlined
def fill(row, begin, size, value):
    """Write a vector whose lanes are all alike to `size` elements."""
    step = lanes(row)
    i = begin
    while i + step <= begin + size:
        store(row, i, value)
        i += step
    if i < begin + size:
        store_part(row, i, begin + size - i, value)


@intrinsic
def store_lanes(typingctx, row, i, live, value):
    """Write the first `live` of 8 lanes of float64, to an array of float32 or float64."""

    def codegen(context, builder, sig, args):
        row, i, live, value = args
        with builder.if_else(builder.icmp_signed(">=", live, I64(8))) as (full, part):
            with full:
                _emit_store(context, builder, sig.args[0], row, i, value)
            with part:
                _emit_store_masked(context, builder, sig.args[0], row, i, live, value)
        return context.get_dummy_value()

    return types.void(row, types.int64, types.int64, value), codegen
