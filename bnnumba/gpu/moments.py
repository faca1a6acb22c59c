"""Device functions that collect the moments of channels.

The moments of n values are kept as ``pivot, rest, m2, n``: the mean is pivot + rest, where the
pivot is a number near it and the rest far smaller, so that two floats hold the mean of data of any
offset. A thread sums d = x - pivot and d^2 over its own values, the pivot being the mean of the
middle two of its first four, so that one outlier among them does no harm; threads and blocks merge
by Chan, Golub & LeVeque (1983), in an order that the shape fixes. Nothing computes E[x^2] - E[x]^2.
Rounding of m2 grows with (mean - pivot)^2 / variance, which is less than the number of a thread's
values, whatever the data. As those are few (`plan` makes more threads instead), float32 is enough
for float32.

A constant channel has d = 0 exactly, and so m2 = 0.
"""

from types import SimpleNamespace

from .jit import SIMULATED, inlined, sync, thread, threads
from .simd import exponent, fma, inverse_root, larger, like, smaller

__all__ = ["FIELDS", "build"]

# Numbers per channel of a partial result.
FIELDS = 3


@inlined
def join(k1, r1, m1, n1, k2, r2, m2, n2):
    """Return the moments of both: Chan's formula about the first pivot, then a nearer pivot."""
    total = n1 + n2
    share = n2 / total if total > 0 else n2
    # No difference where one has no values: its square may overflow, and infinity * 0 is NaN.
    k1 = k1 if n1 > 0 else k2
    k2 = k2 if n2 > 0 else k1
    delta = (k2 - k1) + (r2 - r1)
    r1 = r1 + delta * like(delta, share)
    pivot = k1 + r1
    m = m1 + m2 + delta * delta * like(delta, n1 * share)
    return pivot, r1 - (pivot - k1), m, total


@inlined
def mean_of(k, r):
    """Return the mean as the nearest float and what is left."""
    center = k + r
    return center, r - (center - k)


def build(m, keeps):
    """Return the functions that collect moments; `keeps`: whether shared memory keeps the data."""
    real, count, columns = m.real, m.count, m.columns
    fetch, widen, keep, zero, zero_row = m.fetch, m.widen, m.keep, m.zero, m.zero_row
    take, leave, take_count, leave_count = m.take, m.leave, m.take_count, m.leave_count
    after, count_after, head, read, write = m.after, m.count_after, m.head, m.read, m.write
    rotate1, rotate2, rotate4, advance = m.rotate1, m.rotate2, m.rotate4, m.advance
    row_bytes = columns * real(0).itemsize
    count_bytes = real(0).itemsize
    per_step = count // columns  # values of a channel in one access
    pairs = columns <= 4  # of partial results: more have no room in registers

    @inlined
    def fold(k, r, m2, n):
        """Return the moments of each channel from those of each lane."""
        n1 = n
        if columns < count:
            if count >= 8:
                k, r, m2, n1 = join(k, r, m2, n1, rotate4(k), rotate4(r), rotate4(m2), n1)
            if count >= 4:
                k, r, m2, n1 = join(k, r, m2, n1, rotate2(k), rotate2(r), rotate2(m2), n1)
            if count >= 2:
                k, r, m2, n1 = join(k, r, m2, n1, rotate1(k), rotate1(r), rotate1(m2), n1)
        return head(k), head(r), head(m2), n1

    @inlined
    def collect(x, o, v, q, end, step, stride, slot, slot_step):
        """Return the moments of every `step`-th access from q to `end`."""
        total, square, k, size = zero(), zero(), zero(), 0
        if q < end:
            k = widen(fetch(x, o))
        # Here d is about the first value; the loop starts again with the pivot.
        if q + 3 * step < end:
            o1, _, _, v1 = advance(o, 0, 0, v, stride)
            o2, _, _, v2 = advance(o1, 0, 0, v1, stride)
            o3, _, _, _ = advance(o2, 0, 0, v2, stride)
            s1, s2, s3 = fetch(x, o1), fetch(x, o2), fetch(x, o3)
            d1, d2, d3 = widen(s1) - k, widen(s2) - k, widen(s3) - k
            ends = larger(larger(d1, d2), larger(d3, zero()))
            ends = ends + smaller(smaller(d1, d2), smaller(d3, zero()))
            k = k + ((d1 + d2 + d3) - ends) * like(k, real(0.5))
        while q + 3 * step < end:
            s0 = fetch(x, o)
            o, _, _, v = advance(o, 0, 0, v, stride)
            s1 = fetch(x, o)
            o, _, _, v = advance(o, 0, 0, v, stride)
            s2 = fetch(x, o)
            o, _, _, v = advance(o, 0, 0, v, stride)
            s3 = fetch(x, o)
            o, _, _, v = advance(o, 0, 0, v, stride)
            if keeps:
                keep(slot, s0)
                keep(slot + slot_step, s1)
                keep(slot + 2 * slot_step, s2)
                keep(slot + 3 * slot_step, s3)
                slot += 4 * slot_step
            # One after the other: four at once would need more registers than there are.
            d = widen(s0) - k
            total, square = total + d, fma(d, d, square)
            d = widen(s1) - k
            total, square = total + d, fma(d, d, square)
            d = widen(s2) - k
            total, square = total + d, fma(d, d, square)
            d = widen(s3) - k
            total, square = total + d, fma(d, d, square)
            q += 4 * step
            size += 4
        while q < end:
            s0 = fetch(x, o)
            o, _, _, v = advance(o, 0, 0, v, stride)
            if keeps:
                keep(slot, s0)
                slot += slot_step
            d = widen(s0) - k
            total, square = total + d, fma(d, d, square)
            q += step
            size += 1
        n = real(size)
        mean = total * like(total, real(1) / max(n, real(1)))
        pivot = k + mean
        return fold(pivot, mean - (pivot - k), larger(zero(), square - total * mean), n)

    @inlined
    def join_block(k, r, m2, n, lanes):
        """Merge the moments of the threads that share channels; return the result to all of them.

        Threads t and t + lanes have the same channels. Warps merge by shuffles, then by a tree in
        shared memory; the simulator, which has no warps, by the tree alone.
        """
        t, shift = thread(), exponent(lanes)
        column, row, rows = t & (lanes - 1), t >> shift, threads() >> shift
        live = True
        if not SIMULATED:
            distance = 16
            while distance >= lanes:
                k2, r2, m22 = after(k, distance), after(r, distance), after(m2, distance)
                n2 = count_after(n, distance)
                k, r, m2, n = join(k, r, m2, n, k2, r2, m22, n2)
                distance >>= 1
            column, row, rows = t & 31, t >> 5, threads() >> 5
            live = column < lanes
        slots = rows * lanes
        counts = FIELDS * slots * row_bytes
        while rows > 1:
            half = rows >> 1
            slot = row * lanes + column
            if live and half <= row < rows:
                leave(slot * row_bytes, k)
                leave((slots + slot) * row_bytes, r)
                leave((2 * slots + slot) * row_bytes, m2)
                leave_count(counts + slot * count_bytes, n)
            sync()
            if live and row < half:
                slot += half * lanes
                k2, r2 = take(slot * row_bytes), take((slots + slot) * row_bytes)
                m22 = take((2 * slots + slot) * row_bytes)
                n2 = take_count(counts + slot * count_bytes)
                k, r, m2, n = join(k, r, m2, n, k2, r2, m22, n2)
            rows = half
        if live and row == 0:
            leave(column * row_bytes, k)
            leave((slots + column) * row_bytes, r)
            leave((2 * slots + column) * row_bytes, m2)
        sync()
        slot = t & (lanes - 1)
        k, r = take(slot * row_bytes), take((slots + slot) * row_bytes)
        return k, r, take((2 * slots + slot) * row_bytes)

    @inlined
    def write_partial(partials, place, lanes, k, r, m2):
        """Write the moments of a thread's channels to place number `place`, in `partials`."""
        at = (place * FIELDS * lanes + (thread() & (lanes - 1))) * columns
        write(partials, at, k)
        write(partials, at + lanes * columns, r)
        write(partials, at + 2 * lanes * columns, m2)

    @inlined
    def read_partial(partials, first, parts, chunk, steps, lanes, lane, part):
        """Return the moments of one place, which count no values where there is none."""
        k, r, m2, size = zero_row(), zero_row(), zero_row(), 0
        if part < parts:
            at = ((first + part) * FIELDS * lanes + lane) * columns
            k, r = read(partials, at), read(partials, at + lanes * columns)
            m2 = read(partials, at + 2 * lanes * columns)
            size = min(steps, (part + 1) * chunk) - part * chunk
        return k, r, m2, real(size * per_step)

    @inlined
    def merge_partials(partials, first, parts, chunk, steps, lanes, lane, shared):
        """Return the merged moments of `parts` places from `first` on, each of a chunk of steps.

        A place has `lanes` groups of channels, this thread's being number `lane`; the threads of
        the block have `shared` of them.
        """
        k, r, m2, n = zero_row(), zero_row(), zero_row(), real(0)
        part, rows = thread() >> exponent(shared), threads() >> exponent(shared)
        while part < parts:
            k1, r1, m1, n1 = read_partial(partials, first, parts, chunk, steps, lanes, lane, part)
            part += rows
            if pairs:  # read at a time, as others wait for this merge
                k2, r2, m22, n2 = read_partial(
                    partials, first, parts, chunk, steps, lanes, lane, part
                )
                part += rows
                k1, r1, m1, n1 = join(k1, r1, m1, n1, k2, r2, m22, n2)
            k, r, m2, n = join(k, r, m2, n, k1, r1, m1, n1)
        return join_block(k, r, m2, n, shared)

    @inlined
    def write_stats(stats, channels, c, center, rest, m2, invstd):
        """Write the rows mean, rest of the mean, m2 and invstd."""
        write(stats, c, center)
        write(stats, channels + c, rest)
        write(stats, 2 * channels + c, m2)
        write(stats, 3 * channels + c, invstd)

    @inlined
    def inverse_std(m2, size, eps):
        """Return 1 / sqrt(m2 / size + eps), and 0 where both are 0."""
        return inverse_root(m2 / like(m2, size) + like(m2, eps))

    return SimpleNamespace(
        collect=collect, join_block=join_block, write_partial=write_partial,
        merge_partials=merge_partials, write_stats=write_stats, inverse_std=inverse_std,
    )  # fmt: skip
