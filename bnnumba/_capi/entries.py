"""The C entry points of the range kernels.

Each is ``void entry(int64_t begin, int64_t end, struct job *job, double *work)`` around one range
kernel; ``about`` is the job's address, typed by what data it is about, and ``job`` its fields. The
library compiled ahead of time (``capi/build_aot.py``) and the embedded one
(`bnnumba._capi.embedding`) use the same entries: no kernel is written twice.
"""

import types as python_types

import numba
from numba import types

from ..cpu import caches, choices, parallel, plan, ranges, sums
from ..cpu.jit import OPTIONS, callback, inlined
from .job import (
    Job,
    channel,
    coefficients,
    data,
    fields,
    optional,
    partial_results,
    plan_of,
    rows,
    scratch,
)

__all__ = ["DTYPES", "entry", "names"]

# What the elements of data are seen as, see `bnnumba.cpu.storage`.
DTYPES = {"f32": types.float32, "f64": types.float64, "f16": types.int16, "bf16": types.uint16}
RANKS = {"ncs": 3, "rc": 2}


def _compiled(function, **names):
    """Compile a function of the CPU backend that is interpreted there, or wrapped."""
    function = getattr(function, "__wrapped__", function)
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **names})
    return numba.njit(**OPTIONS)(copy)


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
_update = _compiled(parallel._update_running)
_write_stats = _compiled(parallel._constant_stats)
_merge_moments = _compiled(parallel._merge_moments)


@inlined
def _x(about, job):
    return data(about, job.x, job.x_n, job.x_c)


@inlined
def _dy(about, job):
    return data(about, job.dy, job.dy_n, job.dy_c)


@inlined
def _y(about, job):
    return data(about, job.y, job.y_n, job.y_c)


# The entries of each dtype and view.


def _forward(begin, end, about, work):
    job = fields(about)
    ranges.forward_range(
        begin, end, _x(about, job), plan_of(job), optional(job, job.weight),
        optional(job, job.bias), job.eps, scratch(job, work), partial_results(job),
        coefficients(about, job, 3), rows(job, job.stats, 4), _y(about, job),
    )  # fmt: skip


def _collect(begin, end, about, work):
    job = fields(about)
    ranges.collect_range(
        begin, end, _x(about, job), plan_of(job), scratch(job, work), partial_results(job)
    )


def _normalize(begin, end, about, work):
    job = fields(about)
    ranges.normalize_range(
        begin, end, _x(about, job), plan_of(job), coefficients(about, job, 3), _y(about, job)
    )


def _backward(begin, end, about, work):
    job = fields(about)
    ranges.backward_range(
        begin, end, _x(about, job), _dy(about, job), plan_of(job), optional(job, job.weight),
        rows(job, job.stats, 3), optional(job, job.rest), scratch(job, work), partial_results(job),
        rows(job, job.sums, 2), coefficients(about, job, 4), _y(about, job),
        channel(job, job.dweight), channel(job, job.dbias),
    )  # fmt: skip


def _reduce(begin, end, about, work):
    job = fields(about)
    ranges.reduce_range(
        begin, end, _x(about, job), _dy(about, job), plan_of(job), channel(job, job.mean),
        scratch(job, work), partial_results(job),
    )  # fmt: skip


def _input(begin, end, about, work):
    job = fields(about)
    ranges.input_range(
        begin, end, _x(about, job), _dy(about, job), plan_of(job), coefficients(about, job, 4),
        _y(about, job),
    )  # fmt: skip


# Those of each precision.


def _coefficients(begin, end, about, work):
    job = fields(about)
    ranges.coefficients_range(
        begin, end, channel(job, job.mean), optional(job, job.rest), channel(job, job.invstd),
        optional(job, job.weight), optional(job, job.bias), coefficients(about, job, 3),
    )  # fmt: skip


def _input_coefficients(begin, end, about, work):
    job = fields(about)
    ranges.input_coefficients_range(
        begin, end, float(job.count), channel(job, job.mean), optional(job, job.rest),
        channel(job, job.invstd), rows(job, job.sums, 2), optional(job, job.weight),
        coefficients(about, job, 4),
    )  # fmt: skip


# Those that read and write float64 statistics only, or nothing but the job.


def _choose(kind, threads, about, work):
    """Write the plan of a kind of step (`bnnumba.cpu.choices`), and what goes with it."""
    job = fields(about)
    here = caches.Caches(
        job.block_bytes, job.spill_bytes, job.shared_bytes, job.swept_bytes, job.fetches_ahead
    )
    # The third extent is of one view only, and not looked at.
    shape, size = (job.n, job.columns, job.s), job.n * job.c * job.s
    x = choices.Extents(shape, job.ndim, size, job.itemsize)
    channels = job.columns if kind == choices.WRITES else job.c
    (
        job.slabs, job.across, job.slab_rows, job.slab_columns, job.chunk_rows, job.chunk_columns,
    ) = _cut(x, channels, kind, threads)  # fmt: skip
    if kind == choices.FUSED:
        job.block = _fused_block(x, channels, job.inputs, threads, here)
        job.items = _ceil_div(channels, max(1, job.block))
    else:
        job.block = _split_block(x, channels, kind, job.slabs, threads)
        job.items = job.slabs * _ceil_div(channels, job.block)
    job.scratch = 0 if kind == choices.WRITES else sums.workspace(x, job.block, channels)
    job.ahead = job.block if here.ahead else 0
    job.streaming = _streams(x, kind, job.inputs, here)


def _merge(begin, end, about, work):
    job = fields(about)
    ranges.merge_range(
        begin, end, job.n, job.s, plan_of(job), partial_results(job), job.eps,
        rows(job, job.stats, 4),
    )  # fmt: skip


def _sums(begin, end, about, work):
    job = fields(about)
    ranges.sums_range(
        begin, end, plan_of(job), partial_results(job), optional(job, job.rest),
        channel(job, job.invstd), rows(job, job.sums, 2), channel(job, job.dweight),
        channel(job, job.dbias),
    )  # fmt: skip


def _join(begin, end, about, work):
    job = fields(about)
    _merge_moments(
        job.count, channel(job, job.mean), optional(job, job.rest), channel(job, job.m2),
        job.other_count, channel(job, job.other_mean), optional(job, job.other_rest),
        channel(job, job.other_m2),
    )  # fmt: skip


def _update_running(begin, end, about, work):
    job = fields(about)
    _update(
        optional(job, job.running_mean), optional(job, job.running_var), optional(job, 0),
        channel(job, job.mean), channel(job, job.m2), float(job.count), job.momentum,
        job.correction,
    )  # fmt: skip


def _constant_stats(begin, end, about, work):
    job = fields(about)
    _write_stats(
        channel(job, job.running_mean), channel(job, job.running_var), job.eps,
        rows(job, job.stats, 3),
    )  # fmt: skip


def _table():
    """Return the function and the type of job of each entry, by name."""
    table = {}

    def add(job, functions, *parts):
        for function in functions:
            table["_".join([function.__name__[1:], *parts])] = function, job

    add(Job(types.none), [_choose, _merge, _sums, _join, _update_running, _constant_stats])
    for name in ("f32", "f64"):
        add(Job(DTYPES[name]), [_coefficients, _input_coefficients], name)
    steps = [_forward, _collect, _normalize, _backward, _reduce, _input]
    for name, dtype in DTYPES.items():
        for view, ndim in RANKS.items():
            add(Job(dtype, ndim), steps, view, name)
    return table


_ENTRIES = _table()


def names(*dtypes: str) -> list[str]:
    """Return the names of all entries, or of those that calls on data of some ``DTYPES`` take."""
    wanted = [DTYPES[dtype] for dtype in dtypes or DTYPES]
    return [name for name, (_, job) in _ENTRIES.items() if not job.ndim or job.dtype in wanted]


def entry(name: str, keep: bool = True):
    """Compile an entry and return Numba's C callback around it, kept in the cache or not."""
    function, job = _ENTRIES[name]
    numbers = types.CPointer(types.float64)
    return callback(function, types.void(types.int64, types.int64, job, numbers), keep)
