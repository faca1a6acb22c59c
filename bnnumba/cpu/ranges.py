"""The range kernels: each does the work items ``[begin, end)``, serially, without allocating.

An item of a split step is a slab and a block of channels; an item of a fused step is a block of
channels, whose second sweep finds the block still in the cache. ``x`` is x[n, c, s] or x[r, q];
what is done with a slab differs by its rank. A row x[r] holds the same number of values of each
channel side by side, as many columns q; to a step that only writes, each column is a channel.
"""

from .backward import (
    add_slabs,
    input_coefficients,
    input_slab,
    parameter_gradients,
    reduce_slab,
)
from .integers import minimum
from .jit import inlined
from .moments import collect_slab, merge_slabs
from .normalize import (
    normalize_coefficients,
    normalize_slab,
    repeat_coefficients,
    write_inverse_std,
)
from .parts import part
from .prefetching import prefetch_distance


@inlined
def piece(item, channels, block):
    """Return the slab, the first channel and the end of the channels of an item of a split step."""
    blocks = (channels + block - 1) // block
    c0 = item % blocks * block
    return item // blocks, c0, minimum(channels, c0 + block)


@part
def forward_range(begin, end, x, plan, weight, bias, eps, work, partial, coefs, stats, y):
    """Normalize blocks of channels by their own statistics; stats are mean, m2, invstd, rest.

    While a block is written, the channels that are ``plan.ahead`` of it are fetched.
    """
    channels = stats.shape[1]
    columns = x.shape[1] // channels
    count = x.size // channels
    for item in range(begin, end):
        c0 = item * plan.block
        c1 = minimum(channels, c0 + plan.block)
        for slab in range(plan.slabs):
            mean, m2, origin = partial[slab, 0], partial[slab, 1], partial[slab, 2]
            collect_slab(x, slab, c0, c1, plan, work, mean, m2, origin)
        s = count // x.shape[0]
        merge_slabs(c0, c1, x.shape[0], s, plan, partial, stats[0], stats[1], stats[3])
        write_inverse_std(c0, c1, stats[1], count, eps, stats[2])
        normalize_coefficients(c0, c1, stats[0], stats[3], stats[2], weight, bias, coefs)
        if x.ndim == 2:
            repeat_coefficients(c0, c1, channels, coefs)
        for slab in range(plan.slabs - 1, -1, -1):
            normalize_slab(
                x, slab, c0 * columns, c1 * columns, plan, coefs, y, plan.ahead * columns, 0
            )


@part
def collect_range(begin, end, x, plan, work, partial):
    """Write the moments of each slab and channel to ``partial[slab, :, c]``."""
    for item in range(begin, end):
        slab, c0, c1 = piece(item, partial.shape[2], plan.block)
        mean, m2, origin = partial[slab, 0], partial[slab, 1], partial[slab, 2]
        collect_slab(x, slab, c0, c1, plan, work, mean, m2, origin)


@part
def merge_range(begin, end, n, s, plan, partial, eps, stats):
    """Merge partial moments into stats (mean, m2, invstd, rest) for a range of channels."""
    merge_slabs(begin, end, n, s, plan, partial, stats[0], stats[1], stats[3])
    write_inverse_std(begin, end, stats[1], n * s, eps, stats[2])


@part
def normalize_range(begin, end, x, plan, coefs, y):
    """Normalize slabs and blocks of channels, or columns, by given coefficients."""
    for item in range(begin, end):
        slab, c0, c1 = piece(item, x.shape[1], plan.block)
        normalize_slab(x, slab, c0, c1, plan, coefs, y, 0, prefetch_distance(x))


@part
def coefficients_range(begin, end, mean, rest, invstd, weight, bias, coefs):
    """Write the coefficients that normalize the channels ``[begin, end)``."""
    normalize_coefficients(begin, end, mean, rest, invstd, weight, bias, coefs)
    repeat_coefficients(begin, end, mean.size, coefs)


@part
def backward_range(
    begin, end, x, dy, plan, weight, stats, rest, work, partial, sums, coefs, dx, dweight, dbias
):
    """Write the three gradients of blocks of channels normalized by their own statistics."""
    channels = stats.shape[1]
    columns = x.shape[1] // channels
    count = x.size // channels
    for item in range(begin, end):
        c0 = item * plan.block
        c1 = minimum(channels, c0 + plan.block)
        for slab in range(plan.slabs):
            first, second = partial[slab, 0], partial[slab, 1]
            reduce_slab(x, dy, slab, c0, c1, plan, work, stats[0], first, second)
        add_slabs(c0, c1, plan, partial, rest, sums)
        parameter_gradients(c0, c1, stats[2], sums, dweight, dbias)
        input_coefficients(c0, c1, count, stats[0], rest, stats[2], sums, weight, coefs)
        if x.ndim == 2:
            repeat_coefficients(c0, c1, channels, coefs)
        for slab in range(plan.slabs - 1, -1, -1):
            input_slab(
                x, dy, slab, c0 * columns, c1 * columns, plan, coefs, dx, plan.ahead * columns, 0
            )


@part
def reduce_range(begin, end, x, dy, plan, mean, work, partial):
    """Write sum(dy) and sum(dy * xmu) of each slab and channel to ``partial[slab, :, c]``."""
    for item in range(begin, end):
        slab, c0, c1 = piece(item, partial.shape[2], plan.block)
        first, second = partial[slab, 0], partial[slab, 1]
        reduce_slab(x, dy, slab, c0, c1, plan, work, mean, first, second)


@part
def sums_range(begin, end, plan, partial, rest, invstd, sums, dweight, dbias):
    """Add partial sums and write dweight and dbias for the channels ``[begin, end)``."""
    add_slabs(begin, end, plan, partial, rest, sums)
    parameter_gradients(begin, end, invstd, sums, dweight, dbias)


@part
def input_range(begin, end, x, dy, plan, coefs, dx):
    """Write dx for slabs and blocks of channels, or columns, by given coefficients."""
    for item in range(begin, end):
        slab, c0, c1 = piece(item, x.shape[1], plan.block)
        reach = prefetch_distance(x)
        input_slab(x, dy, slab, c0, c1, plan, coefs, dx, 0, reach)


@part
def input_coefficients_range(begin, end, count, mean, rest, invstd, sums, weight, coefs):
    """Write the coefficients of dx for the channels ``[begin, end)``."""
    input_coefficients(begin, end, count, mean, rest, invstd, sums, weight, coefs)
    repeat_coefficients(begin, end, mean.size, coefs)
