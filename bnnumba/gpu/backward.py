"""Device functions of the backward pass.

With M values per channel and xmu = x - mean (Ioffe & Szegedy 2015; PyTorch's Normalization.cuh):

    sum_dy = sum(dy),    sum_dy_xmu = sum(dy * xmu)
    dx = (dy - sum_dy / M - xmu * invstd^2 * sum_dy_xmu / M) * invstd * weight
    dweight = sum_dy_xmu * invstd,    dbias = sum_dy

dx is a * dy + b * (x - center) + shift with coefficients per channel, where `center` is the mean
rounded to the precision of the arithmetic, as in `normalize`.
"""

from types import SimpleNamespace

from .jit import SIMULATED, inlined, sync, thread, threads
from .simd import exponent, fma, like

__all__ = ["FIELDS", "build"]

# Numbers per channel of a partial result.
FIELDS = 2


def build(m, keeps):
    """Return the functions of the backward pass; `keeps`: whether shared memory keeps the data."""
    count, columns = m.count, m.columns
    fetch, put, widen, narrow, keep, kept = m.fetch, m.put, m.widen, m.narrow, m.keep, m.kept
    zero, zero_row, spread, head, after = m.zero, m.zero_row, m.spread, m.head, m.after
    take, leave, read, write = m.take, m.leave, m.read, m.write
    read_param, write_param = m.read_param, m.write_param
    rotate1, rotate2, rotate4, advance = m.rotate1, m.rotate2, m.rotate4, m.advance
    row_bytes = columns * m.real(0).itemsize

    @inlined
    def fold(total):
        """Return the sum of each channel from those of each lane."""
        if columns < count:
            if count >= 8:
                total = total + rotate4(total)
            if count >= 4:
                total = total + rotate2(total)
            if count >= 2:
                total = total + rotate1(total)
        return head(total)

    @inlined
    def reduce(x, dy, center, rest, o, p, v, q, end, step, stride, slot, slot_step):
        """Return sum_dy and sum_dy_xmu of every `step`-th access from q to `end`.

        x and dy are kept in turns, x first.
        """
        middle = spread(center)
        a, b = zero(), zero()
        while q + step < end:
            x0, g0 = fetch(x, o), fetch(dy, p)
            o, p, _, v = advance(o, p, 0, v, stride)
            x1, g1 = fetch(x, o), fetch(dy, p)
            o, p, _, v = advance(o, p, 0, v, stride)
            if keeps:
                keep(slot, x0)
                keep(slot + slot_step, g0)
                keep(slot + 2 * slot_step, x1)
                keep(slot + 3 * slot_step, g1)
                slot += 4 * slot_step
            w0, w1 = widen(g0), widen(g1)
            a = a + (w0 + w1)
            b = fma(w1, widen(x1) - middle, fma(w0, widen(x0) - middle, b))
            q += 2 * step
        if q < end:
            x0, g0 = fetch(x, o), fetch(dy, p)
            if keeps:
                keep(slot, x0)
                keep(slot + slot_step, g0)
            w0 = widen(g0)
            a = a + w0
            b = fma(w0, widen(x0) - middle, b)
        total, product = fold(a), fold(b)
        return total, product - rest * total

    @inlined
    def add_block(total, product, lanes):
        """Add the sums of the threads that share channels; return the result to all of them."""
        t, shift = thread(), exponent(lanes)
        column, row, rows = t & (lanes - 1), t >> shift, threads() >> shift
        live = True
        if not SIMULATED:
            distance = 16
            while distance >= lanes:
                total = total + after(total, distance)
                product = product + after(product, distance)
                distance >>= 1
            column, row, rows = t & 31, t >> 5, threads() >> 5
            live = column < lanes
        slots = rows * lanes
        while rows > 1:
            half = rows >> 1
            slot = row * lanes + column
            if live and half <= row < rows:
                leave(slot * row_bytes, total)
                leave((slots + slot) * row_bytes, product)
            sync()
            if live and row < half:
                slot += half * lanes
                total = total + take(slot * row_bytes)
                product = product + take((slots + slot) * row_bytes)
            rows = half
        if live and row == 0:
            leave(column * row_bytes, total)
            leave((slots + column) * row_bytes, product)
        sync()
        slot = t & (lanes - 1)
        return take(slot * row_bytes), take((slots + slot) * row_bytes)

    @inlined
    def write_partial(partials, place, lanes, total, product):
        """Write the sums of a thread's channels to place number `place`, in `partials`."""
        at = (place * FIELDS * lanes + (thread() & (lanes - 1))) * columns
        write(partials, at, total)
        write(partials, at + lanes * columns, product)

    @inlined
    def read_partial(partials, place, lanes, lane):
        """Return the sums of group `lane` of the channels at place number `place`."""
        at = (place * FIELDS * lanes + lane) * columns
        return read(partials, at), read(partials, at + lanes * columns)

    @inlined
    def merge_partials(partials, first, parts, lanes, lane, shared):
        """Return the sums over `parts` places from `first` on.

        A place has `lanes` groups of channels, this thread's being number `lane`; the threads of
        the block have `shared` of them.
        """
        total, product = zero_row(), zero_row()
        part, rows = thread() >> exponent(shared), threads() >> exponent(shared)
        while part < parts:
            a, b = read_partial(partials, first + part, lanes, lane)
            total, product = total + a, product + b
            part += rows
        return add_block(total, product, shared)

    @inlined
    def write_gradients(sums, dweight, dbias, channels, c, total, product, invstd):
        """Write the two sums and the gradients of the parameters, where they are wanted."""
        if sums != 0:
            write(sums, c, total)
            write(sums, channels + c, product)
        write_param(dweight, c, product * invstd)
        write_param(dbias, c, total)

    @inlined
    def coefficients(total, product, size, rest, invstd, weight, c):
        """Return a, b and shift of a thread's channels."""
        a = invstd
        if weight != 0:
            a = a * read_param(weight, c)
        b = zero_row() - a * (invstd * invstd) * (product / like(product, size))
        return a, b, zero_row() - a * (total / like(total, size)) - b * rest

    @inlined
    def gradient(x, dy, o, p, slot, slot_step, center, a, b, shift):
        """Return dx for one access, from shared memory if x and dy are kept there."""
        if keeps:
            value, grad = widen(kept(slot)), widen(kept(slot + slot_step))
        else:
            value, grad = widen(fetch(x, o)), widen(fetch(dy, p))
        return narrow(fma(grad, a, fma(value - center, b, shift)))

    @inlined
    def differentiate(
        x, dy, dx, o, p, w, v, q, end, step, stride, slot, slot_step, center, a, b, shift
    ):
        """Write every `step`-th access of dx from q to `end`."""
        center, a, b, shift = spread(center), spread(a), spread(b), spread(shift)
        while q + step < end:
            o1, p1, w1, v = advance(o, p, w, v, stride)
            d0 = gradient(x, dy, o, p, slot, slot_step, center, a, b, shift)
            d1 = gradient(x, dy, o1, p1, slot + 2 * slot_step, slot_step, center, a, b, shift)
            put(dx, w, d0)
            put(dx, w1, d1)
            o, p, w, v = advance(o1, p1, w1, v, stride)
            slot += 4 * slot_step
            q += 2 * step
        if q < end:
            put(dx, w, gradient(x, dy, o, p, slot, slot_step, center, a, b, shift))

    return SimpleNamespace(
        reduce=reduce, add_block=add_block, write_partial=write_partial,
        read_partial=read_partial, merge_partials=merge_partials,
        write_gradients=write_gradients, coefficients=coefficients, differentiate=differentiate,
    )  # fmt: skip
