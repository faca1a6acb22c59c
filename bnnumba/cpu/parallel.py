"""Drivers: each prepares a step, and shares out the work items of its range kernel.

They are given every argument: Numba's dispatch of omitted ones is slow. The first one says whether
threads do the items (`bnnumba.cpu.worksharing`); results are the same to the bit either way. They
return whether there was memory enough.
"""

import math

from .jit import Strided, inlined
from .memory import REPEATED, allocated, shaped, unaligned
from .normalize import inverse_std, write_inverse_std
from .plan import Plan
from .ranges import (
    backward_range,
    coefficients_range,
    collect_range,
    forward_range,
    input_coefficients_range,
    input_range,
    merge_range,
    normalize_range,
    reduce_range,
    sums_range,
)
from .simd import lanes
from .sums import workspace
from .worksharing import parallel_for


@inlined
def room(out, channels, slabs, fields, rows):
    """Return whether there is room for partial results and coefficients, and the room.

    It is one allocation, which takes as long as a hundred values of a small array. Coefficients,
    which `out` is written with, are of the precision that it is computed in, and stand as far from
    a cache line as `out`, so that those of a vector that fills a line of `out` fill a line too:
    with two lines to each vector, 103 MB of channels last were normalized in 5.2 ms by one thread,
    so in 4.3.
    """
    columns = out.shape[1] + REPEATED
    size = slabs * fields * channels
    numbers = allocated(size + rows * columns + 2 * REPEATED)
    line = (size + unaligned(numbers, size)) * lanes(out) // lanes(numbers)
    lead = -unaligned(out, 0) % lanes(out)
    return (
        numbers.size > 0,
        shaped(numbers, numbers, 0, (slabs, fields, channels)),
        shaped(out, numbers, line + lead, (rows, columns)),
    )


@inlined
def partial_room(slabs, fields, channels):
    """Return whether there is room for partial results, and the room."""
    numbers = allocated(slabs * fields * channels)
    return numbers.size > 0, shaped(numbers, numbers, 0, (slabs, fields, channels))


@inlined
def plan_of(packed):
    """Return the plan that an array holds; see `choose`."""
    return Plan(
        packed[0], packed[1], packed[2], packed[3], packed[4], packed[5], packed[6], packed[7],
        packed[8],
    )  # fmt: skip


def _forward(team, packed, x, weight, bias, eps, stats, y):
    plan, channels = plan_of(packed), stats.shape[1]
    enough, partial, coefs = room(y, channels, plan.slabs, 3, 3)
    if not enough:
        return False
    blocks = (channels + plan.block - 1) // plan.block
    return _forward_blocks(team, blocks, x, plan, weight, bias, eps, partial, coefs, stats, y)


@parallel_for
def _forward_blocks(begin, end, x, plan, weight, bias, eps, partial, coefs, stats, y):
    work = allocated(workspace(x, plan.block, stats.shape[1]))
    if work.size == 0:
        return False
    forward_range(begin, end, x, plan, weight, bias, eps, work, partial, coefs, stats, y)
    return True


def _collect(team, packed, x, eps, stats):
    plan, channels = plan_of(packed), stats.shape[1]
    enough, partial = partial_room(plan.slabs, 3, channels)
    if not enough:
        return False
    items = plan.slabs * ((channels + plan.block - 1) // plan.block)
    done = _collect_items(team, items, x, plan, partial)
    n = x.shape[0]
    merge_range(0, channels, n, x.size // (n * channels), plan, partial, eps, stats)
    return done


@parallel_for
def _collect_items(begin, end, x, plan, partial):
    work = allocated(workspace(x, plan.block, partial.shape[2]))
    if work.size == 0:
        return False
    collect_range(begin, end, x, plan, work, partial)
    return True


def _normalize(team, packed, x, weight, bias, mean, rest, invstd, y):
    plan = plan_of(packed)
    enough, _, coefs = room(y, 0, 0, 0, 3)
    if not enough:
        return False
    coefficients_range(0, mean.size, mean, rest, invstd, weight, bias, coefs)
    items = plan.slabs * ((x.shape[1] + plan.block - 1) // plan.block)
    return _normalize_items(team, items, x, plan, coefs, y)


@parallel_for
def _normalize_items(begin, end, x, plan, coefs, y):
    normalize_range(begin, end, x, plan, coefs, y)
    return True


def _infer(team, packed, x, weight, bias, mean, var, eps, y):
    plan, channels = plan_of(packed), mean.size
    enough, scratch, coefs = room(y, channels, 1, 1, 3)
    if not enough:
        return False
    invstd = scratch[0, 0]
    write_inverse_std(0, channels, var, 1, eps, invstd)
    coefficients_range(0, channels, mean, invstd[:0], invstd, weight, bias, coefs)
    items = plan.slabs * ((x.shape[1] + plan.block - 1) // plan.block)
    return _normalize_items(team, items, x, plan, coefs, y)


def _backward(team, packed, x, dy, weight, stats, dx, dweight, dbias):
    plan, channels = plan_of(packed), stats.shape[1]
    enough, partial, coefs = room(dx, channels, plan.slabs + 1, 2, 4)
    if not enough:
        return False
    blocks = (channels + plan.block - 1) // plan.block
    return _backward_blocks(
        team, blocks, x, dy, plan, weight, stats, partial, coefs, dx, dweight, dbias
    )


@parallel_for
def _backward_blocks(begin, end, x, dy, plan, weight, stats, partial, coefs, dx, dweight, dbias):
    work = allocated(workspace(x, plan.block, stats.shape[1]))
    if work.size == 0:
        return False
    backward_range(
        begin, end, x, dy, plan, weight, stats, stats[3], work, partial, partial[plan.slabs],
        coefs, dx, dweight, dbias,
    )  # fmt: skip
    return True


def _reduce(team, packed, x, dy, mean, rest, invstd, sums, dweight, dbias):
    plan, channels = plan_of(packed), mean.size
    enough, partial = partial_room(plan.slabs, 2, channels)
    if not enough:
        return False
    items = plan.slabs * ((channels + plan.block - 1) // plan.block)
    done = _reduce_items(team, items, x, dy, plan, mean, partial)
    sums_range(0, channels, plan, partial, rest, invstd, sums, dweight, dbias)
    return done


@parallel_for
def _reduce_items(begin, end, x, dy, plan, mean, partial):
    work = allocated(workspace(x, plan.block, mean.size))
    if work.size == 0:
        return False
    reduce_range(begin, end, x, dy, plan, mean, work, partial)
    return True


def _input(team, packed, x, dy, weight, mean, rest, invstd, sums, count, dx):
    plan = plan_of(packed)
    enough, _, coefs = room(dx, 0, 0, 0, 4)
    if not enough:
        return False
    input_coefficients_range(0, mean.size, count, mean, rest, invstd, sums, weight, coefs)
    items = plan.slabs * ((x.shape[1] + plan.block - 1) // plan.block)
    return _input_items(team, items, x, dy, plan, coefs, dx)


@parallel_for
def _input_items(begin, end, x, dy, plan, coefs, dx):
    input_range(begin, end, x, dy, plan, coefs, dx)
    return True


forward = Strided(_forward, {"stats", "y"})
collect = Strided(_collect, {"stats"})
normalize = Strided(_normalize, {"y"})
infer = Strided(_infer, {"y"})
backward = Strided(_backward, {"dx", "dweight", "dbias"})
reduce = Strided(_reduce, {"sums", "dweight", "dbias"})
input_gradient = Strided(_input, {"dx"})


def _update_running(running_mean, running_var, batches, mean, m2, count, momentum, correction):
    # Not r += momentum * (new - r): the old value would leave its rounding in a smaller new one.
    kept = 1.0 - momentum
    for c in range(running_mean.size):
        running_mean[c] = kept * running_mean[c] + momentum * mean[c]
    for c in range(running_var.size):
        running_var[c] = kept * running_var[c] + momentum * (m2[c] / (count - correction))
    for i in range(batches.size):
        batches[i] += 1


def _merge_moments(count, mean, rest, m2, other_count, other_mean, other_rest, other_m2):
    """Merge other moments into these (Chan, Golub & LeVeque 1983).

    A mean is the sum of two numbers, ``mean + rest``: rounded to float64 at each merge, means at an
    offset of 1e7 would move the variance of a stream by 1e-11, timestamps by 1e-4. An empty rest
    stands for zeros, and is not kept.
    """
    share = other_count / (count + other_count)
    between = count * share
    for c in range(mean.size):
        here = rest[c] if rest.size else 0.0
        there = other_rest[c] if other_rest.size else 0.0
        if count == 0:
            mean[c], left, m2[c] = other_mean[c], there, other_m2[c]
        else:
            delta = (other_mean[c] - mean[c]) + (there - here)
            step = delta * share
            total = mean[c] + step
            step_of_total = total - mean[c]
            lost = (mean[c] - (total - step_of_total)) + (step - step_of_total) + here
            if not math.isfinite(lost):  # nothing is left of an infinite mean
                lost = 0.0
            mean[c] = total + lost
            left = lost - (mean[c] - total)
            m2[c] += other_m2[c] + delta * delta * between
        if rest.size:
            rest[c] = left if math.isfinite(left) else 0.0


def _constant_stats(mean, var, eps, stats):
    for c in range(mean.size):
        stats[0, c] = mean[c]
        stats[1, c] = var[c]
        stats[2, c] = inverse_std(var[c], eps)


# One call, which nothing interrupts, moves all running statistics; an empty array is left out.
update_running = Strided(_update_running, {"running_mean", "running_var", "batches"})
constant_stats = Strided(_constant_stats, {"stats"})
merge_moments = Strided(_merge_moments, {"mean", "rest", "m2"})
