"""Range kernels that collect the moments of channels.

One pass over each chunk sums d = x - pivot and d^2 in float64, where the pivot is the mean of the
chunk's first few values, so that d is small whatever the data's offset:

    mean = pivot + sum(d) / n,    m2 = sum(d^2) - sum(d)^2 / n

Rounding then grows with (mean - pivot)^2 / variance, which is at most n / (values in the pivot)
whatever the data. Two sweeps over each chunk were exact as well but took a quarter more arithmetic.
Chunks and slabs merge by Chan, Golub & LeVeque (1983).

A constant chunk has pivot = its value exactly (the pivot is a first value plus a mean difference
from it), hence d = 0 and m2 = 0 exactly.
"""

from .jit import kernel
from .plan import chunk_bounds, slab_chunks
from .simd import (
    BLOCK,
    fma,
    hsum,
    load_f64,
    load_f64_part,
    prefetch_block,
    prefetch_distance,
    select_part,
    splat_f64,
    store,
)

# float64 numbers of workspace per channel: three vectors of 8 lanes.
WORKSPACE = 24


@kernel
def merge_into(mean, m2, c, count, other_mean, other_m2, other_count):
    """Merge other moments of channel c into ``mean[c], m2[c]``, which count `count` values."""
    total = count + other_count
    share = other_count / total
    delta = other_mean - mean[c]
    # With count 0 this takes over the other's numbers as they are, share being 1.
    mean[c] = mean[c] + delta * share if count else other_mean
    m2[c] = m2[c] + other_m2 + delta * delta * (count * share) if count else other_m2


@kernel
def merge_slabs(begin, end, n, s, plan, partial, mean_out, m2_out):
    """Merge ``partial[slab, :, c]`` into one mean and m2 for each channel of a range."""
    count = 0
    for slab in range(plan[3]):
        first, last = slab_chunks(n, s, plan, slab)
        size = 0
        for chunk in range(first, last):
            n0, n1, s0, s1 = chunk_bounds(n, s, plan, chunk)
            size += (n1 - n0) * (s1 - s0)
        for c in range(begin, end):
            merge_into(mean_out, m2_out, c, count, partial[slab, 0, c], partial[slab, 1, c], size)
        count += size


@kernel
def pivot_of(row, s0, s1):
    """Return the mean of a row's first values, exact for constant ones."""
    first = hsum(load_f64_part(row, s0, 1))
    start = splat_f64(first)
    total = splat_f64(0.0)
    stop = min(s1, s0 + BLOCK)
    i = s0
    while i + 8 <= stop:
        total = total + (load_f64(row, i) - start)
        i += 8
    if i < stop:
        total = total + select_part(load_f64_part(row, i, stop - i) - start, stop - i)
    return first + hsum(total) / (stop - s0)


@kernel
def accumulate_row(row, s0, s1, pivot, ahead, turn, sums, at):
    """Add sum(d) and sum(d^2) of ``row[s0:s1]`` to the lanes ``sums[at:at + 16]``.

    `ahead` is the row that comes after this one's neighbours, from where position `turn` on is
    prefetched.
    """
    k = splat_f64(pivot)
    distance = prefetch_distance(row)
    a0, q0 = load_f64(sums, at), load_f64(sums, at + 8)
    a1 = a2 = a3 = q1 = q2 = q3 = splat_f64(0.0)
    i = s0
    while i < s1:
        if i < turn:
            prefetch_block(row, i + distance)
        else:
            prefetch_block(ahead, i - turn)
        stop = min(s1, i + BLOCK)
        while i + 32 <= stop:
            d0 = load_f64(row, i) - k
            d1 = load_f64(row, i + 8) - k
            d2 = load_f64(row, i + 16) - k
            d3 = load_f64(row, i + 24) - k
            a0, a1, a2, a3 = a0 + d0, a1 + d1, a2 + d2, a3 + d3
            q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
            i += 32
        while i + 8 <= stop:
            d0 = load_f64(row, i) - k
            a0, q0 = a0 + d0, fma(d0, d0, q0)
            i += 8
        if i < stop:
            d1 = select_part(load_f64_part(row, i, stop - i) - k, stop - i)
            a1, q1 = a1 + d1, fma(d1, d1, q1)
            i = stop
    store(sums, at, (a0 + a1) + (a2 + a3))
    store(sums, at + 8, (q0 + q1) + (q2 + q3))


@kernel
def collect_slab_ncs(x, slab, begin, end, plan, work, mean, m2):
    """Write the moments of one slab of x[n, c, s] to ``mean[c], m2[c]`` for a range of channels."""
    n, channels, s = x.shape
    zero = splat_f64(0.0)
    span = (end - begin) * s - prefetch_distance(x[0, 0])
    count = 0
    first, last = slab_chunks(n, s, plan, slab)
    for chunk in range(first, last):
        n0, n1, s0, s1 = chunk_bounds(n, s, plan, chunk)
        for c in range(begin, end):
            at = (c - begin) * WORKSPACE
            store(work, at, zero)
            store(work, at + 8, zero)
            work[at + 16] = pivot_of(x[n0, c], s0, s1)
        for i in range(n0, n1):
            ahead = x[i + 1, begin] if i + 1 < n else x[0, min(end, channels - 1)]
            for c in range(begin, end):
                at = (c - begin) * WORKSPACE
                turn = span - (c - begin) * s
                accumulate_row(x[i, c], s0, s1, work[at + 16], ahead, turn, work, at)
        size = (n1 - n0) * (s1 - s0)
        for c in range(begin, end):
            at = (c - begin) * WORKSPACE
            total, square = hsum(load_f64(work, at)), hsum(load_f64(work, at + 8))
            mean_d = total / size
            # Not max(0, ...): that would turn NaN into 0.
            rest = square - total * mean_d
            rest = 0.0 if rest < 0.0 else rest
            merge_into(mean, m2, c, count, work[at + 16] + mean_d, rest, size)
        count += size
