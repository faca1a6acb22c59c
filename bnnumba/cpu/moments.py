"""Range kernels that collect the moments of channels.

One pass over each chunk sums d = x - pivot and d^2 in float64, where the pivot is near the chunk's
first few values (`bnnumba.cpu.moment_sums`):

    mean = pivot + sum(d) / n,    m2 = sum(d^2) - sum(d)^2 / n

Rounding then grows with (mean - pivot)^2 / variance, which is at most n / (values in the pivot)
whatever the data. Two sweeps over each chunk were exact as well but took a quarter more arithmetic.
Chunks and slabs merge by Chan, Golub & LeVeque (1983).

Means are kept relative to a value of the channel until all are merged: means at an offset of 1e7
would be rounded to 1e-9, and so would their differences, which would not average out. That value is
the middle one of three, lest it be an outlier.

A constant chunk has pivot = its value exactly (the pivot is a first value plus a mean difference
from it), hence d = 0 and m2 = 0 exactly.
"""

from .integers import maximum, minimum
from .jit import inlined
from .lanewise import middle, or_zero, positive_part
from .memory import element, load_f64, load_lanes, row_at, store, store_lanes
from .moment_sums import (
    accumulate_columns,
    accumulate_part,
    add_row,
    add_short_rows,
    begin_columns,
    begin_rows,
)
from .parts import by_rank, part
from .plan import slab_bounds
from .prefetching import prefetch_distance
from .simd import all_zero, hsum, splat_f64
from .sums import (
    RUN,
    SEGMENT,
    WORKSPACE,
    both_levels,
    first_columns,
    fold,
    next_sweep,
    row_after,
    row_group,
    rows_at_once,
    rows_of_run,
    rows_together,
    sum_columns,
)

# What the pivot is the mean of in the rc view: an eighth of a chunk, but no more values than these,
# and rows; half as many values where rows are taken together, which has more chunks.
PIVOT_VALUES, PIVOT_ROWS = 128, 16


@inlined
def merge_into(mean, m2, c, live, count, other_mean, other_m2, other_count):
    """Merge other moments, lanes for up to 8 channels, into ``mean[c:c + live], m2[c:c + live]``.

    Those count `count` values; with none, this takes over the other's numbers as they are.
    """
    if count:
        share = other_count / (count + other_count)
        mean_here = load_lanes(mean, c, live)
        delta = other_mean - mean_here
        between = delta * delta * splat_f64(count * share)
        other_mean = mean_here + delta * splat_f64(share)
        other_m2 = load_lanes(m2, c, live) + other_m2 + between
    store_lanes(mean, c, live, other_mean)
    store_lanes(m2, c, live, other_m2)


@inlined
def finish_chunk(mean, m2, c, live, count, pivot, total, square, size):
    """Merge lanes of the sums of d and d^2 over one chunk into the moments from channel c on."""
    mean_d = total / splat_f64(float(size))
    merge_into(
        mean, m2, c, live, count, pivot + mean_d, positive_part(square - total * mean_d), size
    )


@part
def merge_slabs(begin, end, n, s, plan, partial, mean, m2, rest):
    """Merge ``partial[slab, :, c]`` into one mean and m2 for each channel of a range.

    The rows of a partial result are its mean relative to an origin, its m2, and the origin, which
    is the same for all slabs. `rest` is what rounding the mean to float64 leaves over.
    """
    count = 0
    for slab in range(plan.slabs):
        n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
        size = (n1 - n0) * (s1 - s0)
        means, m2s = partial[slab, 0], partial[slab, 1]
        for c in range(begin, end, 8):
            live = end - c
            other_mean, other_m2 = load_lanes(means, c, live), load_lanes(m2s, c, live)
            merge_into(mean, m2, c, live, count, other_mean, other_m2, size)
        count += size
    origin = partial[0, 2]
    for c in range(begin, end, 8):
        live = end - c
        a, b = load_lanes(origin, c, live), load_lanes(mean, c, live)
        total = a + b
        b_of_total = total - a
        store_lanes(mean, c, live, total)
        store_lanes(rest, c, live, or_zero((a - (total - b_of_total)) + (b - b_of_total)))


def collect_slab_ncs(x, slab, begin, end, plan, work, mean, m2, origin):
    """Write the moments of one slab of x[n, c, s], the mean relative to `origin`."""
    n, _, s = x.shape
    span, stride = (end - begin) * s - prefetch_distance(x), x.strides[0] // x.itemsize
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    for c in range(begin, end):
        first, last = element(row_at(x, (0, c)), 0), element(row_at(x, (n - 1, c)), s - 1)
        between = element(row_at(x, (n // 2, c)), s // 2)
        origin[c] = middle(first, between, last)
    count = 0
    for row0 in range(n0, n1, plan.chunk_rows):
        row1 = minimum(n1, row0 + plan.chunk_rows)
        for column0 in range(s0, s1, plan.chunk_columns):
            column1 = minimum(s1, column0 + plan.chunk_columns)
            for c in range(begin, end):
                at = (c - begin) * 8 * WORKSPACE
                begin_rows(x, c, row0, row1, column0, column1, work, at)
            together, rows = rows_at_once(column1 - column0), rows_of_run(column1 - column0)
            for i in range(row0, row1, together):
                folds = (i + together - row0) % rows == 0
                ahead = next_sweep(x, i + together, begin, end)
                for c in range(begin, end):
                    at = (c - begin) * 8 * WORKSPACE
                    pivot = work[at + 32]
                    turn = span - (c - begin) * s
                    row = row_at(x, (i, c))
                    if together == 2 and i + 1 < row1:
                        add_short_rows(row, stride, column0, column1, pivot, ahead, turn, work, at)
                        if folds:
                            fold(work, at, at + 16)
                    else:
                        for first in range(column0, column1, SEGMENT):
                            last = minimum(column1, first + SEGMENT)
                            add_row(row, first, last, pivot, ahead, turn, work, at)
                            if folds:
                                fold(work, at, at + 16)
            size = (row1 - row0) * (column1 - column0)
            for c in range(begin, end):
                at = (c - begin) * 8 * WORKSPACE
                total = splat_f64(hsum(load_f64(work, at) + load_f64(work, at + 16)))
                square = splat_f64(hsum(load_f64(work, at + 8) + load_f64(work, at + 24)))
                pivot = splat_f64(work[at + 32] - origin[c])
                finish_chunk(mean, m2, c, 1, count, pivot, total, square, size)
            count += size


def collect_slab_rc(x, slab, begin, end, plan, work, mean, m2, origin):
    """Write the moments of one slab of x[r, q] for a range of channels, each of s columns.

    The mean is relative to `origin`. `work` holds sums and squares of the columns on two levels and
    their pivots, each in a stretch padded to whole vectors.
    """
    r, s = x.shape[0], plan.slab_columns
    column, columns = begin * s, (end - begin) * s
    n0, n1, _, _ = slab_bounds(r, s, plan, slab)
    for at in range(0, columns, 8):
        first = load_lanes(row_at(x, (0,)), column + at, columns - at)
        last = load_lanes(row_at(x, (r - 1,)), column + at, columns - at)
        between = load_lanes(row_at(x, (r // 2,)), column + at, columns - at)
        store(work, at, middle(first, between, last))
    first_columns(work, 0, columns, s)
    for c in range(begin, end, 8):
        store_lanes(origin, c, end - c, load_f64(work, c - begin))
    count = 0
    for row0 in range(n0, n1, plan.chunk_rows):
        row1 = minimum(n1, row0 + plan.chunk_rows)
        together = rows_together(x, x, row1 - row0, columns)
        rows, size = (row1 - row0) // together, together * columns
        width = (size + 7) // 8 * 8
        stride = x.strides[0] // x.itemsize * together
        group, reach, stretches = row_group(x, size, columns == x.shape[1], 1)
        most = minimum(PIVOT_VALUES // s, PIVOT_ROWS)
        if together > 1:
            most = PIVOT_VALUES // 2 // (together * s)
        pivot_rows = maximum(1, minimum(rows // 8, most))
        begin_columns(x, row0, pivot_rows, column, columns, s, together, width, work)
        unshifted = True
        for at in range(0, columns, 8):
            unshifted = unshifted and all_zero(load_f64(work, 4 * width + at))
        for start in range(0, rows, RUN):
            stop = minimum(rows, start + RUN)
            for first_row in range(start, stop, group):
                taken = minimum(stop - first_row, group)
                row = row_at(x, (row0 + first_row * together, column))
                at = 0
                for k in range(stretches):
                    after = row0 + (first_row + reach + k) * together
                    ahead = row_after(x, after, column, column + columns)
                    line = 0
                    until = 16 * (size // 16 * (k + 1) // stretches)
                    while at < until:
                        if unshifted:
                            accumulate_columns(
                                row, stride, taken, at, ahead, line, width, work, None
                            )
                        else:
                            accumulate_columns(
                                row, stride, taken, at, ahead, line, width, work, work
                            )
                        at += 16
                        line += 16 * taken
                accumulate_part(row, stride, taken, at, size, width, work)
            if stop < rows:
                for at in range(0, 2 * width, 16):
                    fold(work, at, 2 * width + at)
        rest = (row1 - row0 - rows * together) * columns
        row = row_at(x, (row0 + rows * together, column))
        accumulate_part(row, 0, 1, 0, rest, width, work)
        sum_columns(work, width, columns, s, together, 2)
        first_columns(work, 4 * width, columns, s)
        values = (row1 - row0) * s
        for c in range(begin, end, 8):
            total, square = both_levels(work, width, c - begin)
            pivot = load_f64(work, 4 * width + c - begin) - load_lanes(origin, c, end - c)
            finish_chunk(mean, m2, c, end - c, count, pivot, total, square, values)
        count += values


collect_slab = by_rank(collect_slab_ncs, collect_slab_rc)
