"""The C entry points of the range kernels.

Each is ``void entry(int64_t begin, int64_t end, struct job *job, double *work)`` around one range
kernel, where a job is a struct of 64-bit fields. The library compiled ahead of time
(``capi/build_aot.py``) and the embedded one (`bnnumba._capi.embedding`) use the same entries: no
kernel is written twice.
"""

import types as python_types

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from .. import cpu
from ..cpu import choices, parallel, plan, ranges, sums
from ..cpu.jit import _OPTIONS
from ..cpu.memory import REPEATED

__all__ = ["DTYPES", "FIELDS", "FLOATS", "SIGNATURE", "SIZES", "agreement", "entry", "names"]

# Addresses are integers here; strides are in bytes; what caches bear is `bnnumba.cpu.caches`'s.
FIELDS = (
    *("x", "dy", "y"),  # addresses of data
    *("n", "c", "s", "columns"),  # a view x[r, q] has n = r and c * s columns, the other c
    *("x_n", "x_c", "dy_n", "dy_c", "y_n", "y_c"),
    *("inputs", "block_bytes", "spill_bytes", "shared_bytes", "fetches_ahead"),
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
JOB = numba.from_dtype(np.dtype([(name, "f8" if name in FLOATS else "i8") for name in FIELDS]))

# What the elements of data are seen as (`bnnumba.cpu.simd`), their size, the arithmetic's type.
DTYPES = {
    "f32": (types.float32, 4, types.float32),
    "f64": (types.float64, 8, types.float64),
    "f16": (types.int16, 2, types.float32),
    "bf16": (types.uint16, 2, types.float32),
}
# Rows of the partial results of one slab: mean relative to an origin, m2, origin.
PARTIAL_ROWS = 3
# How much memory C must provide, and where it takes the other view.
SIZES = {"PARTIAL_ROWS": PARTIAL_ROWS, "REPEATED": REPEATED, "SHORT_ROW": cpu.SHORT_ROW}
SIGNATURE = types.void(types.int64, types.int64, types.voidptr, types.CPointer(types.float64))


def agreement():
    """Return what C and the kernels must agree on, as text."""
    return " ".join([*FIELDS, *(f"{name}={size}" for name, size in SIZES.items())])


@intrinsic
def _job_at(typingctx, pointer):
    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(JOB))

    return JOB(pointer), codegen


@intrinsic
def _address(typingctx, pointer):
    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic
def _strided(typingctx, kind, address, shape, strides):
    """Return the array of elements `kind` that stands at an address; nothing owns it."""
    return types.Array(kind.instance_type, len(shape), "A")(
        kind, address, shape, strides
    ), _emit_array


@intrinsic
def _dense(typingctx, kind, address, shape):
    """Return the C-contiguous array of elements `kind` that stands at an address."""
    return types.Array(kind.instance_type, len(shape), "C")(kind, address, shape), _emit_array


def _emit_array(context, builder, signature, arguments):
    # Not numba.carray, which leaves calls into Numba's runtime.
    array_type = signature.return_type
    array = context.make_array(array_type)(context, builder)
    itemsize = ir.IntType(64)(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))
    shape = cgutils.unpack_tuple(builder, arguments[2])
    if len(arguments) == 4:
        strides = cgutils.unpack_tuple(builder, arguments[3])
    else:
        strides = [itemsize]
        for extent in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], extent))
    data = builder.inttoptr(arguments[1], array.data.type)
    arrayobj.populate_array(array, data, shape, strides, itemsize, meminfo=None)
    return array._getvalue()


def _inlined(function):
    return numba.njit(inline="always", **_OPTIONS)(function)


@_inlined
def _plan_of(job):
    # A step that the compiler knows not to be 0 leaves no path that raises an exception.
    return plan.Plan(
        job.slabs, job.across, job.slab_rows, job.slab_columns, max(1, job.chunk_rows),
        max(1, job.chunk_columns), job.block, job.ahead, job.streaming,
    )  # fmt: skip


@_inlined
def _row(job, address):
    return _dense(types.float64, address, (job.c,))


@_inlined
def _optional(job, address):
    return _dense(types.float64, address, (job.c if address else 0,))


@_inlined
def _rows(job, address, rows):
    return _dense(types.float64, address, (rows, job.c))


@_inlined
def _partial(job):
    return _dense(types.float64, job.partial, (job.slabs, PARTIAL_ROWS, job.c))


def _data_entries(kind, size, precision, rank):
    """Return the entries that read and write data of one dtype in one view."""
    if rank == 3:

        @_inlined
        def data(job, address, n, c):
            return _strided(kind, address, (job.n, job.c, job.s), (n, c, size))
    else:

        @_inlined
        def data(job, address, n, c):
            return _strided(kind, address, (job.n, job.columns), (n, size))

    @_inlined
    def coefficients(job, rows):
        return _dense(precision, job.coefs, (rows, job.columns + REPEATED))

    @_inlined
    def scratch(job, work):
        return _dense(types.float64, _address(work), (job.scratch,))

    def choose(begin, end, pointer, work):
        # `begin` is the kind of step (`bnnumba.cpu.choices`), `end` the number of threads.
        job = _job_at(pointer)
        x = data(job, job.x, job.x_n, job.x_c)
        channels = job.columns if begin == choices.WRITES else job.c
        _write_cut(job, _cut(x, channels, begin, end))
        if begin == choices.FUSED:
            job.block = _fused_block(
                x, channels, job.inputs, end, job.block_bytes, job.spill_bytes, job.shared_bytes
            )
            job.items = _ceil_div(channels, max(1, job.block))
        else:
            job.block = _split_block(x, channels, begin, job.slabs, end)
            job.items = job.slabs * _ceil_div(channels, job.block)
        job.scratch = 0 if begin == choices.WRITES else sums.workspace(x, job.block, channels)
        job.ahead = job.block if job.fetches_ahead else 0
        job.streaming = _streams(x, begin, job.inputs, job.shared_bytes)

    def forward(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.forward_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), _plan_of(job),
            _optional(job, job.weight), _optional(job, job.bias), job.eps,
            scratch(job, work), _partial(job), coefficients(job, 3), _rows(job, job.stats, 4),
            data(job, job.y, job.y_n, job.y_c),
        )  # fmt: skip

    def collect(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.collect_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), _plan_of(job),
            scratch(job, work), _partial(job),
        )  # fmt: skip

    def normalize(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.normalize_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), _plan_of(job),
            coefficients(job, 3), data(job, job.y, job.y_n, job.y_c),
        )  # fmt: skip

    def backward(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.backward_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), data(job, job.dy, job.dy_n, job.dy_c),
            _plan_of(job), _optional(job, job.weight),
            _rows(job, job.stats, 3), _optional(job, job.rest), scratch(job, work), _partial(job),
            _rows(job, job.sums, 2),
            coefficients(job, 4), data(job, job.y, job.y_n, job.y_c), _row(job, job.dweight),
            _row(job, job.dbias),
        )  # fmt: skip

    def reduce(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.reduce_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), data(job, job.dy, job.dy_n, job.dy_c),
            _plan_of(job), _row(job, job.mean),
            scratch(job, work), _partial(job),
        )  # fmt: skip

    def input(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.input_range(
            begin, end, data(job, job.x, job.x_n, job.x_c), data(job, job.dy, job.dy_n, job.dy_c),
            _plan_of(job), coefficients(job, 4), data(job, job.y, job.y_n, job.y_c),
        )  # fmt: skip

    return choose, forward, collect, normalize, backward, reduce, input


def _coefficient_entries(precision):
    """Return the entries that write coefficients for arithmetic of one precision."""

    def coefficients(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.coefficients_range(
            begin, end, _row(job, job.mean), _optional(job, job.rest), _row(job, job.invstd),
            _optional(job, job.weight), _optional(job, job.bias),
            _dense(precision, job.coefs, (3, job.columns + REPEATED)),
        )  # fmt: skip

    def input_coefficients(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.input_coefficients_range(
            begin, end, float(job.count), _row(job, job.mean), _optional(job, job.rest),
            _row(job, job.invstd),
            _rows(job, job.sums, 2), _optional(job, job.weight),
            _dense(precision, job.coefs, (4, job.columns + REPEATED)),
        )  # fmt: skip

    return coefficients, input_coefficients


def _compiled(function, **names):
    """Compile a function of the CPU backend that is interpreted there, or wrapped."""
    function = getattr(function, "__wrapped__", function)
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **names})
    return numba.njit(**_OPTIONS)(copy)


_ceil_div = _compiled(plan._ceil_div)
_columns = _compiled(plan._columns, _ceil_div=_ceil_div)
_cut_ncs = _compiled(plan.cut_ncs, _ceil_div=_ceil_div, _columns=_columns)
_cut_rc = _compiled(plan.cut_rc, _ceil_div=_ceil_div)
_even = _compiled(plan.even, _ceil_div=_ceil_div)
_even_rows = _compiled(plan.even_rows, _ceil_div=_ceil_div, even=_even)
_cut_writes = _compiled(
    plan.cut_writes, _ceil_div=_ceil_div, _columns=_columns, even_rows=_even_rows
)
_cut = _compiled(choices.cut, cut_ncs=_cut_ncs, cut_rc=_cut_rc, cut_writes=_cut_writes)
_streams = _compiled(choices.streams)
_fused_block = _compiled(choices.fused_block, streams=_streams, even=_even)
_split_block = _compiled(choices.split_block, even=_even)
_update_running = _compiled(parallel._update_running)
_constant_stats = _compiled(parallel._constant_stats)
_merge_moments = _compiled(parallel._merge_moments)


@_inlined
def _write_cut(job, cut):
    job.slabs, job.across, job.slab_rows, job.slab_columns, job.chunk_rows, job.chunk_columns = cut


def _shared_entries():
    """Return the entries that read and write float64 statistics only."""

    def merge(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.merge_range(
            begin, end, job.n, job.s, _plan_of(job), _partial(job), job.eps,
            _rows(job, job.stats, 4),
        )  # fmt: skip

    def sums(begin, end, pointer, work):
        job = _job_at(pointer)
        ranges.sums_range(
            begin, end, _plan_of(job), _partial(job), _optional(job, job.rest),
            _row(job, job.invstd),
            _rows(job, job.sums, 2), _row(job, job.dweight), _row(job, job.dbias),
        )  # fmt: skip

    def join(begin, end, pointer, work):
        job = _job_at(pointer)
        _merge_moments(
            job.count, _row(job, job.mean), _optional(job, job.rest), _row(job, job.m2),
            job.other_count, _row(job, job.other_mean), _optional(job, job.other_rest),
            _row(job, job.other_m2),
        )  # fmt: skip

    def update_running(begin, end, pointer, work):
        job = _job_at(pointer)
        _update_running(
            _optional(job, job.running_mean), _optional(job, job.running_var),
            _dense(types.int64, 0, (0,)), _row(job, job.mean), _row(job, job.m2),
            float(job.count), job.momentum, job.correction,
        )  # fmt: skip

    def constant_stats(begin, end, pointer, work):
        job = _job_at(pointer)
        _constant_stats(
            _row(job, job.running_mean), _row(job, job.running_var), job.eps,
            _rows(job, job.stats, 3),
        )  # fmt: skip

    return merge, sums, join, update_running, constant_stats


_ENTRIES = {function.__name__: function for function in _shared_entries()}
for _name, _precision in (("f32", types.float32), ("f64", types.float64)):
    for _function in _coefficient_entries(_precision):
        _ENTRIES[f"{_function.__name__}_{_name}"] = _function
for _name, _dtype in DTYPES.items():
    for _view, _rank in (("ncs", 3), ("rc", 2)):
        for _function in _data_entries(*_dtype, _rank):
            _ENTRIES[f"{_function.__name__}_{_view}_{_name}"] = _function


def names() -> list[str]:
    """Return the names of all entries."""
    return list(_ENTRIES)


def entry(name: str):
    """Compile an entry and return Numba's C callback around it."""
    return numba.cfunc(SIGNATURE, **_OPTIONS)(_ENTRIES[name])
