"""Sums of dy and of dy * (x - mean) over rows and columns."""

from .integers import minimum
from .lanewise import difference, fma
from .memory import load_f64, load_f64_part, load_f64x16, load_lanes, moved, store
from .parts import part
from .prefetching import BLOCK, prefetch, prefetch_run
from .simd import blend, half_sum, joined, zeros_f64x16


@part
def accumulate_gradient_row(row, grad, s0, s1, mean, row_ahead, grad_ahead, turn, sums, at):
    """Add sum(dy) and sum(dy * (x - mean)) of s0 to s1 to the lanes ``sums[at:at + 16]``."""
    a = q = zeros_f64x16()
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, row_ahead, i, turn)
        prefetch_run(grad, grad_ahead, i, turn)
        for _ in range(4):
            g = load_f64x16(grad, i)
            a, q = a + g, fma(g, difference(load_f64x16(row, i), mean), q)
            i += 16
    if i < s1:
        prefetch_run(row, row_ahead, i, turn)
        prefetch_run(grad, grad_ahead, i, turn)
    while i + 16 <= s1:
        g = load_f64x16(grad, i)
        a, q = a + g, fma(g, difference(load_f64x16(row, i), mean), q)
        i += 16
    total, product = load_f64(sums, at) + half_sum(a), load_f64(sums, at + 8) + half_sum(q)
    if i + 8 <= s1:
        e = load_f64(grad, i)
        total, product = total + e, fma(e, difference(load_f64(row, i), mean), product)
        i += 8
    if i < s1:
        live = s1 - i
        e, d = load_f64_part(grad, i, live), load_f64_part(row, i, live)
        d = blend(difference(d, mean), d, live)
        total, product = total + e, fma(e, d, product)
    store(sums, at, total)
    store(sums, at + 8, product)


@part
def accumulate_short_gradient_rows(
    row, grad, stride, grad_stride, s0, s1, mean, row_ahead, grad_ahead, turn, sums, at
):
    """Do `accumulate_gradient_row` for the rows of one channel in two images.

    Those of x are `stride` elements apart, those of dy `grad_stride`.
    """
    other, other_grad = moved(row, stride), moved(grad, grad_stride)
    other_ahead, other_grad_ahead = moved(row_ahead, stride), moved(grad_ahead, grad_stride)
    a = q = zeros_f64x16()
    i = s0
    while i + 8 <= s1:
        prefetch_run(row, row_ahead, i, turn)
        prefetch_run(other, other_ahead, i, turn)
        prefetch_run(grad, grad_ahead, i, turn)
        prefetch_run(other_grad, other_grad_ahead, i, turn)
        for _ in range(minimum(BLOCK, s1 - i) // 8):
            g = joined(load_f64(grad, i), load_f64(other_grad, i))
            d = difference(joined(load_f64(row, i), load_f64(other, i)), mean)
            a, q = a + g, fma(g, d, q)
            i += 8
    total, product = load_f64(sums, at) + half_sum(a), load_f64(sums, at + 8) + half_sum(q)
    if i < s1:
        live = s1 - i
        e, d = load_f64_part(grad, i, live), load_f64_part(row, i, live)
        d = blend(difference(d, mean), d, live)
        total, product = total + e, fma(e, d, product)
        e, d = load_f64_part(other_grad, i, live), load_f64_part(other, i, live)
        d = blend(difference(d, mean), d, live)
        total, product = total + e, fma(e, d, product)
    store(sums, at, total)
    store(sums, at + 8, product)


@part
def accumulate_gradient_columns(
    row, grad, stride, grad_stride, rows, at, row_ahead, grad_ahead, line, width, work
):
    """Add sum(dy) and sum(dy * (x - mean)) of 16 columns; see `accumulate_columns`."""
    i = j = at
    k = load_f64x16(work, 4 * width + at)
    a, q = load_f64x16(work, at), load_f64x16(work, width + at)
    for _ in range(rows):
        prefetch(row_ahead, line)
        prefetch(grad_ahead, line)
        line += 16
        g = load_f64x16(grad, j)
        a, q = a + g, fma(g, difference(load_f64x16(row, i), k), q)
        i += stride
        j += grad_stride
    store(work, at, a)
    store(work, width + at, q)


@part
def accumulate_gradient_part(row, grad, stride, grad_stride, rows, at, end, width, work):
    """Do `accumulate_gradient_columns` for some columns; see `accumulate_part`."""
    while at < end:
        live = end - at
        k0 = load_lanes(work, 4 * width + at, live)
        a0, q0 = load_f64(work, at), load_f64(work, width + at)
        for i in range(rows):
            g0 = load_lanes(grad, i * grad_stride + at, live)
            a0, q0 = a0 + g0, fma(g0, load_lanes(row, i * stride + at, live) - k0, q0)
        store(work, at, a0)
        store(work, width + at, q0)
        at += 8
