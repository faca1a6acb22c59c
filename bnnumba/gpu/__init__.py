"""The CUDA backend: steps of batch normalization on arrays of one view.

A view is x[n, c, s] with contiguous rows or x[r, c] with contiguous channels (`bnnumba.layout`).
Statistics have the rows mean, rest of the mean, m2 and invstd: two floats hold a mean to more
digits than one. They are float64 for float64 data and float32 otherwise. Arrays are `DeviceArray`s;
None stands for a parameter that is not there. Nothing waits for the device.

The package is called gpu, not cuda: numba-cuda takes every module for its own whose full name
contains "numba.cuda", so that `bnnumba.cuda` could not be imported beside it.
"""

from . import backward as _backward
from . import moments as _moments
from . import saved as _saved
from .launch import kernels_of, merging, passes, real_of, sweeps, workspace

__all__ = [
    "backward",
    "backward_input",
    "backward_reduce",
    "collect_moments",
    "constant_stats",
    "forward",
    "infer",
    "merge_moments",
    "normalize",
    "pack_stats",
    "unpack_stats",
    "update_running",
]

# Threads of the kernels that work on statistics alone.
_FEW = 64


def _at(array):
    return 0 if array is None else array.address


def _parameter(*arrays):
    """Return the dtype that parameters have in common, None if they differ."""
    names = {array.dtype.name for array in arrays if array is not None}
    if not names:
        return "float32"
    return names.pop() if len(names) == 1 else None


def _kernels(view, parameter):
    return kernels_of(view.kind, view.elements, view.columns, parameter)


def _stats(call, view, like):
    return call.empty((4, view.channels), real_of(view.kind), like)


def forward(call, view, x, y, weight, bias, eps, running_mean, running_var, momentum, divisor):
    """Write the normalized x to y, move the running statistics, and return the stats of the batch.

    Weight and bias are of one dtype. What must outlive the launch is returned besides.
    """
    stats = _stats(call, view, x)
    plan = sweeps(view, 1, call.device.traits)
    parameter = _parameter(weight, bias, running_mean, running_var)
    fused = parameter is not None and plan is not None
    if parameter is None:
        parameter = _parameter(weight, bias)
    means = (_at(running_mean), _at(running_var)) if fused else (0, 0)
    k = _kernels(view, parameter)
    outside = (x.address, y.address, _at(weight), _at(bias), stats.address)
    extents = (view.channels, view.steps, view.per_row, *view.strides)
    reals = (view.size, eps, momentum, divisor)
    work = None
    if plan is None:
        work = collect_moments(call, view, x, eps, stats)
        normalize(call, view, x, y, weight, bias, stats)
    elif not plan.group:
        call.launch(
            k.forward_resident, plan.tiles, plan.threads, plan.shared, *outside, *means, *extents,
            plan.lanes, plan.scratch, *reals,
        )  # fmt: skip
    else:
        work, counters, partials = workspace(call, view, plan, _moments.FIELDS, x)
        grid = 2 * -(-plan.tiles // plan.group) * plan.group * plan.parts
        call.launch(
            k.forward_swept, grid, plan.threads, plan.shared, *outside, *means, counters, partials,
            *extents, plan.lanes, plan.tiles, plan.parts, plan.chunk, plan.group, *reals,
        )  # fmt: skip
    if not fused and (running_mean is not None or running_var is not None):
        update_running(call, view.channels, stats, running_mean, running_var, momentum, divisor)
    return stats, work


def collect_moments(call, view, x, eps, stats):
    """Write the stats of each channel of x, the first array of the view; return workspace."""
    plan = passes(view, 1, call.device.traits)
    work, partials = None, 0
    if plan.parts > 1:
        work, _, partials = workspace(call, view, plan, _moments.FIELDS, x)
    xn, xc = view.strides[:2]
    call.launch(
        _kernels(view, "float32").collect_moments, plan.tiles * plan.parts, plan.threads,
        plan.shared, x.address, stats.address, partials, view.channels, view.steps, view.per_row,
        xn, xc, plan.lanes, plan.tiles, plan.parts, plan.chunk, view.size, eps,
    )  # fmt: skip
    if plan.parts > 1:
        merge_moments(call, view, plan, partials, eps, stats)
    return work


def merge_moments(call, view, plan, partials, eps, stats):
    """Merge the partial moments of a plan, in order, and write the stats of each channel."""
    call.launch(
        _kernels(view, "float32").merge_moments, view.groups, *merging(view, plan),
        stats.address, partials, view.channels, view.steps, plan.lanes, plan.parts, plan.chunk,
        view.size, eps,
    )  # fmt: skip


def normalize(call, view, x, y, weight, bias, stats, centered=True):
    """Write (x - mean) * invstd * weight + bias to y; the mean counts as 0 unless `centered`."""
    plan = passes(view, 1, call.device.traits)
    pitch = stats.strides[0]
    mean = stats.address if centered else 0
    call.launch(
        _kernels(view, _parameter(weight, bias)).apply, plan.tiles * plan.parts, plan.threads, 0,
        x.address, y.address, _at(weight), _at(bias), mean, mean and mean + pitch,
        stats.address + 3 * pitch, view.channels, view.steps, view.per_row, *view.strides,
        plan.lanes, plan.tiles, plan.chunk,
    )  # fmt: skip


def infer(call, view, x, y, weight, bias, mean, var, eps):
    """Write (x - mean) / sqrt(var + eps) * weight + bias to y; all parameters are of one dtype."""
    plan = passes(view, 1, call.device.traits)
    call.launch(
        _kernels(view, _parameter(weight, bias, mean, var)).infer, plan.tiles * plan.parts,
        plan.threads, 0, x.address, y.address, _at(weight), _at(bias), mean.address, var.address,
        view.channels, view.steps, view.per_row, *view.strides, plan.lanes, plan.tiles, plan.chunk,
        eps,
    )  # fmt: skip


def backward(call, view, x, dy, dx, weight, stats, dweight, dbias):
    """Write the gradients of a batch that was normalized by its own statistics; return workspace.

    The view is of x, dy and dx.
    """
    plan = sweeps(view, 2, call.device.traits)
    k = _kernels(view, dweight.dtype.name)
    arrays = (x.address, dy.address, dx.address, _at(weight), stats.address)
    gradients = (dweight.address, dbias.address)
    extents = (view.channels, view.steps, view.per_row, *view.strides)
    if plan is None:
        sums = call.empty((2, view.channels), real_of(view.kind), x)
        work = backward_reduce(call, view, x, dy, stats, sums, dweight, dbias)
        backward_input(call, view, x, dy, dx, weight, stats, sums, view.size)
        return sums, work
    if not plan.group:
        call.launch(
            k.backward_resident, plan.tiles, plan.threads, plan.shared, *arrays, *gradients,
            *extents, plan.lanes, plan.scratch, view.size,
        )  # fmt: skip
        return None
    work, counters, partials = workspace(call, view, plan, _backward.FIELDS, x)
    grid = 2 * -(-plan.tiles // plan.group) * plan.group * plan.parts
    call.launch(
        k.backward_swept, grid, plan.threads, plan.shared, *arrays, *gradients, counters, partials,
        *extents, plan.lanes, plan.tiles, plan.parts, plan.chunk, plan.group, view.size,
    )  # fmt: skip
    return work


def backward_reduce(call, view, x, dy, stats, sums, dweight, dbias):
    """Write sum_dy and sum_dy_xmu to `sums`, unless None, and the gradients of the parameters."""
    plan = passes(view, 2, call.device.traits)
    work, partials = None, 0
    if plan.parts > 1:
        work, _, partials = workspace(call, view, plan, _backward.FIELDS, x)
    k = _kernels(view, dweight.dtype.name)
    targets = (stats.address, _at(sums), dweight.address, dbias.address, partials)
    call.launch(
        k.backward_reduce, plan.tiles * plan.parts, plan.threads, plan.shared, x.address,
        dy.address, *targets, view.channels, view.steps, view.per_row, *view.strides[:4],
        plan.lanes, plan.tiles, plan.parts, plan.chunk,
    )  # fmt: skip
    if plan.parts > 1:
        call.launch(
            k.merge_sums, view.groups, *merging(view, plan), *targets, view.channels,
            plan.lanes, plan.parts,
        )  # fmt: skip
    return work


def backward_input(call, view, x, dy, dx, weight, stats, sums, size):
    """Write the gradient of the input, given the sums over `size` values per channel."""
    plan = passes(view, 2, call.device.traits)
    call.launch(
        _kernels(view, _parameter(weight)).backward_input, plan.tiles * plan.parts, plan.threads,
        0, x.address, dy.address, dx.address, _at(weight), stats.address, sums.address,
        view.channels, view.steps, view.per_row, *view.strides, plan.lanes, plan.tiles, plan.chunk,
        size,
    )  # fmt: skip


def constant_stats(call, mean, var, eps, stats):
    """Write the stats of given mean and variance, which are of one dtype."""
    channels = stats.shape[1]
    k = kernels_of(stats.dtype.name, 1, 1, mean.dtype.name)
    call.launch(
        k.constant_stats, -(-channels // _FEW), _FEW, 0, mean.address, var.address, stats.address,
        channels, eps,
    )  # fmt: skip


def _convert_stats(call, kernel, source, target, channels):
    call.launch(
        kernel, -(-channels // _FEW), _FEW, 0, source.address, target.address, channels
    )  # fmt: skip


def pack_stats(call, stats, rows):
    """Write stats as the float64 rows mean, m2 and invstd."""
    k = _saved.build(stats.dtype.name)
    _convert_stats(call, k.pack, stats, rows, stats.shape[1])


def unpack_stats(call, rows, stats):
    """Write stats from the float64 rows mean, m2 and invstd."""
    k = _saved.build(stats.dtype.name)
    _convert_stats(call, k.unpack, rows, stats, stats.shape[1])


def update_running(call, channels, stats, running_mean, running_var, momentum, divisor):
    """Move the running statistics that are there, of any dtypes, towards `stats`."""
    for mean, var in ((running_mean, None), (None, running_var)):
        given = mean if var is None else var
        if given is not None:
            k = kernels_of(stats.dtype.name, 1, 1, given.dtype.name)
            call.launch(
                k.move_running, -(-channels // _FEW), _FEW, 0, _at(mean), _at(var), stats.address,
                channels, momentum, divisor,
            )  # fmt: skip
