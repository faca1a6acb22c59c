"""The job that C gives a kernel: a struct of 64-bit fields, and what kernels see in it."""

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

from .. import cpu
from ..cpu.integers import maximum
from ..cpu.jit import inlined
from ..cpu.memory import REPEATED, emit_array
from ..cpu.plan import Plan
from ..cpu.simd import I64, vector_of
from ..cpu.storage import storage

__all__ = [
    "FIELDS",
    "FLOATS",
    "SIZES",
    "Job",
    "agreement",
    "channel",
    "coefficients",
    "data",
    "fields",
    "optional",
    "partial_results",
    "plan_of",
    "rows",
    "scratch",
]

# Addresses are integers here; strides are in bytes; what caches bear is `bnnumba.cpu.caches`'s.
FIELDS = (
    *("x", "dy", "y"),  # addresses of data
    *("n", "c", "s", "columns"),  # a view x[r, q] has n = r and c * s columns, the other c
    *("ndim", "itemsize"),  # of the view
    *("x_n", "x_c", "dy_n", "dy_c", "y_n", "y_c"),
    *("inputs", "block_bytes", "spill_bytes", "shared_bytes", "swept_bytes", "fetches_ahead"),
    # written by `choose`: the plan, the work items, the float64 numbers that one of them works with
    *("block", "ahead", "streaming", "items", "scratch"),
    *("slabs", "across", "slab_rows", "slab_columns", "chunk_rows", "chunk_columns"),
    # addresses of (slabs, PARTIAL_ROWS, c), (4, columns + REPEATED) of the arithmetic's precision,
    # as far from a cache line as y, (4, c) and (2, c)
    *("partial", "coefs", "stats", "sums"),
    # addresses of c numbers; weight and bias may be 0
    *("weight", "bias", "mean", "m2", "invstd", "dweight", "dbias"),
    *("other_mean", "other_m2", "running_mean", "running_var"),
    *("rest", "other_rest"),  # of means, may be 0
    *("count", "other_count"),
    *("eps", "momentum", "correction"),
)
FLOATS = {"eps", "momentum", "correction"}
# Rows of the partial results of one slab: mean relative to an origin, m2, origin.
PARTIAL_ROWS = 3
# How much memory C must provide, and where it takes the other view.
SIZES = {"PARTIAL_ROWS": PARTIAL_ROWS, "REPEATED": REPEATED, "SHORT_ROW": cpu.SHORT_ROW}

_RECORD = numba.from_dtype(np.dtype([(name, "f8" if name in FLOATS else "i8") for name in FIELDS]))


def agreement():
    """Return what C and the kernels must agree on, as text."""
    return " ".join([*FIELDS, *(f"{name}={size}" for name, size in SIZES.items())])


class Job(types.Type):
    """A Numba type: where a job stands, and what data it is about.

    To C, jobs are all alike. Here each dtype, of the elements as kernels see them, and each rank of
    a view has a type of its own, so that one function is compiled for all of them.
    """

    def __init__(self, dtype, ndim=0):
        self.dtype, self.ndim = dtype, ndim
        super().__init__(name=f"Job({dtype}, {ndim})")


register_model(Job)(models.OpaqueModel)


@intrinsic
def fields(typingctx, job):
    """Return the record of a job's fields."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(_RECORD))

    return _RECORD(job), codegen


@intrinsic
def data(typingctx, job, address, n_stride, c_stride):
    """Return the view of the job's data that stands at an address; nothing owns it."""
    kind = types.Array(job.dtype, job.ndim, "A")
    extents = ("n", "c", "s") if job.ndim == 3 else ("n", "columns")

    def codegen(context, builder, signature, arguments):
        job, address, *strides = arguments
        at = builder.bitcast(job, I64.as_pointer())
        shape = [builder.load(builder.gep(at, [I64(FIELDS.index(name))])) for name in extents]
        strides = [*strides[: kind.ndim - 1], I64(storage(kind)[1])]
        array = context.make_array(kind)(context, builder)
        at = builder.inttoptr(address, array.data.type)
        arrayobj.populate_array(array, at, shape, strides, strides[-1], meminfo=None)
        return array._getvalue()

    return kind(job, types.int64, types.int64, types.int64), codegen


@intrinsic
def _numbers(typingctx, address, shape):
    """Return the contiguous array of float64 that stands at an address."""
    return _dense(types.float64, len(shape))(address, shape), _emit_dense


@intrinsic
def _coefficients(typingctx, job, address, shape):
    """Return an array of the precision that the job's data are computed in."""
    single = vector_of(job).scalar
    signature = _dense(single, len(shape))(job, address, shape)
    return signature, lambda context, builder, signature, arguments: _emit_dense(
        context, builder, signature, arguments[1:]
    )


@intrinsic
def _address(typingctx, pointer):
    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], I64)

    return types.int64(pointer), codegen


def _dense(dtype, ndim):
    return types.Array(dtype, ndim, "C")


def _emit_dense(context, builder, signature, arguments):
    kind, (address, shape) = signature.return_type, arguments
    at = builder.inttoptr(address, storage(kind)[0].as_pointer())
    return emit_array(context, builder, kind, at, shape)


@inlined
def plan_of(job):
    """Return the plan of a job, given its fields as to all that follow."""
    # A step that the compiler knows not to be 0 leaves no path that raises an exception.
    return Plan(
        job.slabs, job.across, job.slab_rows, job.slab_columns, maximum(1, job.chunk_rows),
        maximum(1, job.chunk_columns), job.block, job.ahead, job.streaming,
    )  # fmt: skip


@inlined
def channel(job, address):
    """Return the number of each channel."""
    return _numbers(address, (job.c,))


@inlined
def optional(job, address):
    """Return the number of each channel, or an empty array where the address is 0."""
    return _numbers(address, (job.c if address else 0,))


@inlined
def rows(job, address, count):
    """Return some rows of a number of each channel."""
    return _numbers(address, (count, job.c))


@inlined
def partial_results(job):
    """Return the partial results of the slabs."""
    return _numbers(job.partial, (job.slabs, PARTIAL_ROWS, job.c))


@inlined
def scratch(job, work):
    """Return what a work item works with."""
    return _numbers(_address(work), (job.scratch,))


@inlined
def coefficients(about, job, count):
    """Return the table of coefficients of a job, given what it is about as well."""
    return _coefficients(about, job.coefs, (count, job.columns + REPEATED))
