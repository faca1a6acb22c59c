"""Sums of d = x - pivot and of d^2 over rows and columns, and the pivots.

The pivot is the mean of a chunk's first few values, so that d is small whatever the data's offset.
Where those values have a mean no larger than their deviation, the pivot is 0 and nothing need be
subtracted (training of 6 to 100 MB: 8 to 13 % less time). The worst cases are no worse for it; they
were three times so where a mean might be two deviations.

The pivot is rounded to the precision of the data: with all of float64's digits in it, each d would
be rounded the same way, and such errors do not average out.
"""

from .integers import minimum
from .jit import inlined
from .lanewise import difference, fma, rounded, zero_where_less
from .memory import (
    element,
    fill,
    load_f64,
    load_f64_part,
    load_f64x16,
    load_lanes,
    moved,
    row_at,
    store,
)
from .parts import part
from .prefetching import BLOCK, prefetch, prefetch_run
from .simd import blend, half_sum, hsum, joined, splat_f64, zeros_f64x16
from .sums import first_columns, repeat_columns, sum_columns


@part
def accumulate_row(row, s0, s1, pivot, ahead, turn, sums, at):
    """Add sum(d) and sum(d^2) of ``row[s0:s1]`` to the lanes ``sums[at:at + 16]``.

    d is relative to the pivot, which is None where that is 0. `ahead` is the row that comes after
    this one's neighbours: see `prefetch_run`.
    """
    # Sums of squares wait for longer, so that there are two of them; with two sums as well the
    # registers of AVX2 would not do (in the cache twice as long).
    a = q = r = zeros_f64x16()
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, ahead, i, turn)
        for _ in range(2):
            d = difference(load_f64x16(row, i), pivot)
            a, q = a + d, fma(d, d, q)
            d = difference(load_f64x16(row, i + 16), pivot)
            a, r = a + d, fma(d, d, r)
            i += 32
    if i < s1:
        prefetch_run(row, ahead, i, turn)
    while i + 16 <= s1:
        d = difference(load_f64x16(row, i), pivot)
        a, q = a + d, fma(d, d, q)
        i += 16
    total, square = load_f64(sums, at) + half_sum(a), load_f64(sums, at + 8) + half_sum(q + r)
    if i + 8 <= s1:
        e = difference(load_f64(row, i), pivot)
        total, square = total + e, fma(e, e, square)
        i += 8
    if i < s1:
        live = s1 - i
        e = load_f64_part(row, i, live)  # and 0 in the other lanes
        e = blend(difference(e, pivot), e, live)
        total, square = total + e, fma(e, e, square)
    store(sums, at, total)
    store(sums, at + 8, square)


@part
def accumulate_short_rows(row, stride, s0, s1, pivot, ahead, turn, sums, at):
    """Do `accumulate_row` for the rows of one channel in two images, `stride` elements apart."""
    other, other_ahead = moved(row, stride), moved(ahead, stride)
    a = q = zeros_f64x16()
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, ahead, i, turn)
        prefetch_run(other, other_ahead, i, turn)
        for _ in range(8):
            d = difference(joined(load_f64(row, i), load_f64(other, i)), pivot)
            a, q = a + d, fma(d, d, q)
            i += 8
    if i < s1:
        prefetch_run(row, ahead, i, turn)
        prefetch_run(other, other_ahead, i, turn)
    while i + 8 <= s1:
        d = difference(joined(load_f64(row, i), load_f64(other, i)), pivot)
        a, q = a + d, fma(d, d, q)
        i += 8
    total, square = load_f64(sums, at) + half_sum(a), load_f64(sums, at + 8) + half_sum(q)
    if i < s1:
        live = s1 - i
        e, f = load_f64_part(row, i, live), load_f64_part(other, i, live)
        e, f = blend(difference(e, pivot), e, live), blend(difference(f, pivot), f, live)
        total, square = total + (e + f), fma(e, e, fma(f, f, square))
    store(sums, at, total)
    store(sums, at + 8, square)


@part
def begin_rows(x, c, row0, row1, s0, s1, work, at):
    """Write the pivot of a chunk to ``work[at + 32]``, and zeros to the sums before it.

    It is the mean of some first values, of several rows where they are short, or 0.
    """
    first = element(row_at(x, (row0, c)), s0)
    width = minimum(s1 - s0, BLOCK)
    rows = minimum(row1 - row0, (BLOCK + width - 1) // width)
    store(work, at, zeros_f64x16())
    for r in range(row0, row0 + rows):
        row = row_at(x, (r, c))
        accumulate_row(row, s0, s0 + width, first, row, 0, work, at)
    offset = hsum(load_f64(work, at)) / (rows * width)
    variance = hsum(load_f64(work, at + 8)) / (rows * width) - offset * offset
    pivot = first + offset
    work[at + 32] = 0.0 if pivot * pivot < variance else rounded(x, pivot)
    store(work, at, zeros_f64x16())
    store(work, at + 16, zeros_f64x16())


@inlined
def add_row(row, s0, s1, pivot, ahead, turn, sums, at):
    """Do `accumulate_row` with a pivot that may be 0."""
    if pivot == 0.0:
        accumulate_row(row, s0, s1, None, ahead, turn, sums, at)
    else:
        accumulate_row(row, s0, s1, pivot, ahead, turn, sums, at)


@inlined
def add_short_rows(row, stride, s0, s1, pivot, ahead, turn, sums, at):
    """Do `accumulate_short_rows` with a pivot that may be 0."""
    if pivot == 0.0:
        accumulate_short_rows(row, stride, s0, s1, None, ahead, turn, sums, at)
    else:
        accumulate_short_rows(row, stride, s0, s1, pivot, ahead, turn, sums, at)


@part
def accumulate_columns(row, stride, rows, at, ahead, line, width, work, pivots):
    """Add sum(d) and sum(d^2) of the 16 columns from `at` on to their lanes of `work`.

    They are those of some rows, the first one and others `stride` elements after the one before. A
    line from `ahead` is fetched for each. The pivots stand in `work`; `pivots` is that, or None
    where all are 0.
    """
    i = at
    k = load_f64x16(pivots, 4 * width + at)
    a, q = load_f64x16(work, at), load_f64x16(work, width + at)
    for _ in range(rows):
        prefetch(ahead, line)
        line += 16
        d = difference(load_f64x16(row, i), k)
        a, q = a + d, fma(d, d, q)
        i += stride
    store(work, at, a)
    store(work, width + at, q)


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


@part
def begin_columns(x, row0, rows, column, columns, s, together, width, work):
    """Write the pivots of the columns of a chunk behind their sums, and zeros to those.

    They are the means of some first rows, or 0; the s columns of a channel have one together, and
    so have those of the rows that are taken together as one.
    """
    row, stride, pivots = row_at(x, (row0, column)), x.strides[0] // x.itemsize, 4 * width
    for at in range(0, columns, 8):
        store(work, pivots + at, load_lanes(row, at, columns - at))
    if s > 1:
        for c in range(columns // s):
            fill(work, pivots + c * s, s, splat_f64(work[pivots + c * s]))
    repeat_columns(work, pivots, columns, together)
    for at in range(0, 4 * width, 16):
        store(work, at, zeros_f64x16())
    accumulate_part(row, stride * together, rows, 0, columns * together, width, work)
    sum_columns(work, width, columns, s, together, 1)
    first_columns(work, pivots, columns, s)
    count = splat_f64(float(rows * together * s))
    for at in range(0, columns // s, 8):
        offset = load_f64(work, at) / count
        variance = load_f64(work, width + at) / count - offset * offset
        pivot = load_f64(work, pivots + at) + offset
        store(work, pivots + at, zero_where_less(rounded(x, pivot), pivot * pivot, variance))
    if s > 1:
        for c in range(columns // s - 1, -1, -1):  # the last first: it lands on no other's number
            fill(work, pivots + c * s, s, splat_f64(work[pivots + c]))
    repeat_columns(work, pivots, columns, together)
    for at in range(0, 4 * width, 16):
        store(work, at, zeros_f64x16())
