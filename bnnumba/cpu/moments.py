"""Range kernels that collect the moments of channels.

One pass over each chunk sums d = x - pivot and d^2 in float64, where the pivot is the mean of the
chunk's first few values, so that d is small whatever the data's offset:

    mean = pivot + sum(d) / n,    m2 = sum(d^2) - sum(d)^2 / n

Rounding then grows with (mean - pivot)^2 / variance, which is at most n / (values in the pivot)
whatever the data. Two sweeps over each chunk were exact as well but took a quarter more arithmetic.
Where those first values have a mean no larger than their deviation, the pivot is 0 and nothing need
be subtracted (training of 6 to 100 MB: 8 to 13 % less time). The worst cases are no worse for it;
they were three times so where a mean might be two deviations. Chunks and slabs merge by Chan, Golub
& LeVeque (1983).

Two roundings would not average out, and are avoided. The pivot is rounded to the precision of the
data: with all of float64's digits in it, each d would be rounded the same way. And means are kept
relative to a value of the channel until all are merged: means at an offset of 1e7 would be rounded
to 1e-9, and so would their differences. It is the middle one of three, lest it be an outlier.

A constant chunk has pivot = its value exactly (the pivot is a first value plus a mean difference
from it), hence d = 0 and m2 = 0 exactly.
"""

from .jit import by_rank, inlined, part
from .memory import (
    BLOCK,
    fill,
    load_f64,
    load_f64_part,
    load_lanes,
    load_pivot,
    prefetch,
    prefetch_distance,
    prefetch_run,
    row_at,
    store,
    store_lanes,
)
from .plan import slab_bounds
from .simd import (
    all_zero,
    blend,
    difference,
    fma,
    hsum,
    middle,
    or_zero,
    positive_part,
    rounded,
    splat_f64,
    zero_where_less,
)
from .sums import (
    RUN,
    SEGMENT,
    WORKSPACE,
    both_levels,
    fold,
    next_sweep,
    repeat_columns,
    row_after,
    row_group,
    rows_of_run,
    rows_together,
    sum_columns,
)

# Rows of a chunk whose mean is the pivot in the rc view: an eighth of them, up to these.
PIVOT_ROWS = 16
# Values of a row in a chunk up to which two rows are summed at a time: their accumulators are
# loaded, added up and stored once for both (rows of 49: 17 % less time, of 196 none).
PAIRED_ROW = 128


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
    for slab in range(plan[0]):
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


@inlined
def first_of(row, i):
    """Return one element as float64."""
    return hsum(load_f64_part(row, i, 1))


@inlined
def pivot_of(x, c, row0, row1, s0, s1):
    """Return the mean of some first values of a chunk, of several rows where they are short, or 0.

    They begin at ``x[row, c]``.
    """
    first = first_of(row_at(x, (row0, c)), s0)
    start = splat_f64(first)
    total = square = splat_f64(0.0)
    width = min(s1 - s0, BLOCK)
    rows = min(row1 - row0, (BLOCK + width - 1) // width)
    for r in range(row0, row0 + rows):
        row = row_at(x, (r, c))
        i = s0
        while i + 8 <= s0 + width:
            d = load_f64(row, i) - start
            total, square = total + d, fma(d, d, square)
            i += 8
        if i < s0 + width:
            live = s0 + width - i
            d = blend(load_f64_part(row, i, live) - start, splat_f64(0.0), live)
            total, square = total + d, fma(d, d, square)
    offset = hsum(total) / (rows * width)
    variance = hsum(square) / (rows * width) - offset * offset
    pivot = first + offset
    return 0.0 if pivot * pivot <= variance else rounded(x, pivot)


@inlined
def pivots_of_columns(x, row0, rows, column, live):
    """Return the means of some first values of up to 8 columns of x[r, q], or 0 for a column."""
    first = load_lanes(row_at(x, (row0,)), column, live)
    total = square = splat_f64(0.0)
    for i in range(row0 + 1, row0 + rows):
        d = load_lanes(row_at(x, (i,)), column, live) - first
        total, square = total + d, fma(d, d, square)
    size = splat_f64(float(rows))
    offset = total / size
    variance = square / size - offset * offset
    pivot = first + offset
    return zero_where_less(rounded(x, pivot), pivot * pivot, variance)


@part
def accumulate_row(row, s0, s1, k, ahead, turn, sums, at):
    """Add sum(d) and sum(d^2) of ``row[s0:s1]`` to the lanes ``sums[at:at + 16]``.

    d is relative to `k`, lanes of the pivot, or None where that is 0. `ahead` is the row that comes
    after this one's neighbours: see `prefetch_run`.
    """
    # Sums of squares wait for longer, so that there are four of them; with four sums as well the
    # registers of AVX2 would not do (in the cache twice as long).
    a0, q0 = load_f64(sums, at), load_f64(sums, at + 8)
    a1 = q1 = q2 = q3 = splat_f64(0.0)
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, ahead, i, turn)
        for _ in range(2):
            d0, d1 = difference(load_f64(row, i), k), difference(load_f64(row, i + 8), k)
            a0, a1 = a0 + d0, a1 + d1
            q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
            d2, d3 = difference(load_f64(row, i + 16), k), difference(load_f64(row, i + 24), k)
            a0, a1 = a0 + d2, a1 + d3
            q2, q3 = fma(d2, d2, q2), fma(d3, d3, q3)
            i += 32
    if i < s1:
        prefetch_run(row, ahead, i, turn)
    while i + 16 <= s1:
        d0, d1 = difference(load_f64(row, i), k), difference(load_f64(row, i + 8), k)
        a0, a1 = a0 + d0, a1 + d1
        q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
        i += 16
    if i + 8 <= s1:
        d0 = difference(load_f64(row, i), k)
        a0, q0 = a0 + d0, fma(d0, d0, q0)
        i += 8
    if i < s1:
        live = s1 - i
        d1 = blend(difference(load_f64_part(row, i, live), k), splat_f64(0.0), live)
        a1, q1 = a1 + d1, fma(d1, d1, q1)
    store(sums, at, a0 + a1)
    store(sums, at + 8, (q0 + q1) + (q2 + q3))


@part
def accumulate_short_rows(row, other, s0, s1, k, ahead, other_ahead, turn, sums, at):
    """Do `accumulate_row` for the rows of one channel in two images."""
    a0, q0 = load_f64(sums, at), load_f64(sums, at + 8)
    a1 = q1 = splat_f64(0.0)
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, ahead, i, turn)
        prefetch_run(other, other_ahead, i, turn)
        for _ in range(8):
            d0, d1 = difference(load_f64(row, i), k), difference(load_f64(other, i), k)
            a0, a1 = a0 + d0, a1 + d1
            q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
            i += 8
    if i < s1:
        prefetch_run(row, ahead, i, turn)
        prefetch_run(other, other_ahead, i, turn)
    while i + 8 <= s1:
        d0, d1 = difference(load_f64(row, i), k), difference(load_f64(other, i), k)
        a0, a1 = a0 + d0, a1 + d1
        q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
        i += 8
    if i < s1:
        live = s1 - i
        d0 = blend(difference(load_f64_part(row, i, live), k), splat_f64(0.0), live)
        d1 = blend(difference(load_f64_part(other, i, live), k), splat_f64(0.0), live)
        a0, a1 = a0 + d0, a1 + d1
        q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
    store(sums, at, a0 + a1)
    store(sums, at + 8, q0 + q1)


@inlined
def add_row(row, s0, s1, pivot, ahead, turn, sums, at):
    """Do `accumulate_row` with a pivot that may be 0."""
    if pivot == 0.0:
        accumulate_row(row, s0, s1, None, ahead, turn, sums, at)
    else:
        accumulate_row(row, s0, s1, splat_f64(pivot), ahead, turn, sums, at)


@inlined
def add_short_rows(row, other, s0, s1, pivot, ahead, other_ahead, turn, sums, at):
    """Do `accumulate_short_rows` with a pivot that may be 0."""
    if pivot == 0.0:
        accumulate_short_rows(row, other, s0, s1, None, ahead, other_ahead, turn, sums, at)
    else:
        k = splat_f64(pivot)
        accumulate_short_rows(row, other, s0, s1, k, ahead, other_ahead, turn, sums, at)


def collect_slab_ncs(x, slab, begin, end, plan, work, mean, m2, origin):
    """Write the moments of one slab of x[n, c, s], the mean relative to `origin`."""
    n, _, s = x.shape
    zero = splat_f64(0.0)
    span = (end - begin) * s - prefetch_distance(x)
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    for c in range(begin, end):
        first, last = first_of(row_at(x, (0, c)), 0), first_of(row_at(x, (n - 1, c)), s - 1)
        between = first_of(row_at(x, (n // 2, c)), s // 2)
        origin[c] = max(min(first, between), min(max(first, between), last))
    count = 0
    for row0 in range(n0, n1, plan[4]):
        row1 = min(n1, row0 + plan[4])
        for column0 in range(s0, s1, plan[5]):
            column1 = min(s1, column0 + plan[5])
            for c in range(begin, end):
                at = (c - begin) * 8 * WORKSPACE
                for level in range(at, at + 32, 8):
                    store(work, level, zero)
                work[at + 32] = pivot_of(x, c, row0, row1, column0, column1)
            together = 2 if column1 - column0 <= PAIRED_ROW else 1
            rows = max(1, rows_of_run(column1 - column0) // together) * together
            for i in range(row0, row1, together):
                folds = (i + together - row0) % rows == 0
                ahead = next_sweep(x, i + together, begin, end)
                other_ahead = next_sweep(x, i + together + 1, begin, end)
                for c in range(begin, end):
                    at = (c - begin) * 8 * WORKSPACE
                    pivot = work[at + 32]
                    turn = span - (c - begin) * s
                    row = row_at(x, (i, c))
                    if together == 2 and i + 1 < row1:
                        add_short_rows(
                            row, row_at(x, (i + 1, c)), column0, column1, pivot, ahead,
                            other_ahead, turn, work, at,
                        )  # fmt: skip
                        if folds:
                            fold(work, at, at + 16)
                            fold(work, at + 8, at + 24)
                    else:
                        for first in range(column0, column1, SEGMENT):
                            last = min(column1, first + SEGMENT)
                            add_row(row, first, last, pivot, ahead, turn, work, at)
                            if folds:
                                fold(work, at, at + 16)
                                fold(work, at + 8, at + 24)
            size = (row1 - row0) * (column1 - column0)
            for c in range(begin, end):
                at = (c - begin) * 8 * WORKSPACE
                total = splat_f64(hsum(load_f64(work, at) + load_f64(work, at + 16)))
                square = splat_f64(hsum(load_f64(work, at + 8) + load_f64(work, at + 24)))
                pivot = splat_f64(work[at + 32] - origin[c])
                finish_chunk(mean, m2, c, 1, count, pivot, total, square, size)
            count += size


@part
def accumulate_columns(row, stride, rows, at, ahead, line, width, work, pivots):
    """Add sum(d) and sum(d^2) of the 16 columns from `at` on to their lanes of `work`.

    They are those of some rows, the first one and others `stride` elements after the one before. A
    line from `ahead` is fetched for each. The pivots stand in `work`; `pivots` is that, or None
    where all are 0.
    """
    q = at
    k0, k1 = load_pivot(pivots, 4 * width + at), load_pivot(pivots, 4 * width + at + 8)
    a0, a1 = load_f64(work, at), load_f64(work, at + 8)
    q0, q1 = load_f64(work, width + at), load_f64(work, width + at + 8)
    for _ in range(rows):
        prefetch(ahead, line)
        line += 16
        d0, d1 = difference(load_f64(row, q), k0), difference(load_f64(row, q + 8), k1)
        a0, a1 = a0 + d0, a1 + d1
        q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
        q += stride
    store(work, at, a0)
    store(work, at + 8, a1)
    store(work, width + at, q0)
    store(work, width + at + 8, q1)


@part
def accumulate_part(row, stride, rows, at, end, width, work):
    """Do `accumulate_columns` for the columns from `at` on, before `end`."""
    while at < end:
        live = end - at
        k0 = load_lanes(work, 4 * width + at, live)
        a0, q0 = load_f64(work, at), load_f64(work, width + at)
        for i in range(rows):
            d0 = load_lanes(row, i * stride + at, live) - k0
            a0, q0 = a0 + d0, fma(d0, d0, q0)
        store(work, at, a0)
        store(work, width + at, q0)
        at += 8


@inlined
def first_columns(work, begin, size, s):
    """Move the numbers of the first column of each channel to where the channel's number says."""
    if s > 1:
        for c in range(size // s):
            work[begin + c] = work[begin + c * s]


def collect_slab_rc(x, slab, begin, end, plan, work, mean, m2, origin):
    """Write the moments of one slab of x[r, q] for a range of channels, each of s columns.

    The mean is relative to `origin`. `work` holds sums and squares of the columns on two levels and
    their pivots, each in a stretch padded to whole vectors. The columns of a channel have the pivot
    of the first one.
    """
    r, s = x.shape[0], plan[3]
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
    for row0 in range(n0, n1, plan[4]):
        row1 = min(n1, row0 + plan[4])
        together = rows_together(x, x, row1 - row0, columns)
        rows, size = (row1 - row0) // together, together * columns
        width = (size + 7) // 8 * 8
        stride = x.strides[0] // x.itemsize * together
        group, reach, stretches = row_group(x, size, columns == x.shape[1], 1)
        pivot_rows = max(1, min((row1 - row0) // 8, PIVOT_ROWS))
        unshifted = True
        for at in range(0, columns, 8):
            pivot = pivots_of_columns(x, row0, pivot_rows, column + at, columns - at)
            unshifted = unshifted and all_zero(pivot)
            store(work, 4 * width + at, pivot)
        if s > 1:
            for c in range(end - begin):
                at = 4 * width + c * s
                fill(work, at, s, splat_f64(work[at]))
        repeat_columns(work, 4 * width, columns, together)
        for at in range(0, 4 * width, 8):
            store(work, at, splat_f64(0.0))
        for start in range(0, rows, RUN):
            stop = min(rows, start + RUN)
            for first_row in range(start, stop, group):
                taken = min(stop - first_row, group)
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
                for at in range(0, 2 * width, 8):
                    fold(work, at, 2 * width + at)
        rest = (row1 - row0 - rows * together) * columns
        row = row_at(x, (row0 + rows * together, column))
        accumulate_part(row, 0, 1, 0, rest, width, work)
        sum_columns(work, width, columns, s, together)
        first_columns(work, 4 * width, columns, s)
        values = (row1 - row0) * s
        for c in range(begin, end, 8):
            total, square = both_levels(work, width, c - begin)
            pivot = load_f64(work, 4 * width + c - begin) - load_lanes(origin, c, end - c)
            finish_chunk(mean, m2, c, end - c, count, pivot, total, square, values)
        count += values


collect_slab = by_rank(collect_slab_ncs, collect_slab_rc)
