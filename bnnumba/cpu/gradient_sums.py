"""Sums of dy and of dy * (x - mean) over rows and columns."""

from .jit import part
from .memory import load_f64, load_f64_part, load_lanes, store
from .prefetching import BLOCK, prefetch, prefetch_run
from .simd import blend, fma, splat_f64


@part
def accumulate_gradient_row(row, grad, s0, s1, mean, row_ahead, grad_ahead, turn, sums, at):
    """Add sum(dy) and sum(dy * (x - mean)) of s0 to s1 to the lanes ``sums[at:at + 16]``."""
    k = splat_f64(mean)
    a0, q0 = load_f64(sums, at), load_f64(sums, at + 8)
    a1 = q1 = splat_f64(0.0)
    i = s0
    while i + BLOCK <= s1:
        prefetch_run(row, row_ahead, i, turn)
        prefetch_run(grad, grad_ahead, i, turn)
        for _ in range(4):
            g0, g1 = load_f64(grad, i), load_f64(grad, i + 8)
            a0, a1 = a0 + g0, a1 + g1
            q0 = fma(g0, load_f64(row, i) - k, q0)
            q1 = fma(g1, load_f64(row, i + 8) - k, q1)
            i += 16
    if i < s1:
        prefetch_run(row, row_ahead, i, turn)
        prefetch_run(grad, grad_ahead, i, turn)
    while i + 16 <= s1:
        g0, g1 = load_f64(grad, i), load_f64(grad, i + 8)
        a0, a1 = a0 + g0, a1 + g1
        q0 = fma(g0, load_f64(row, i) - k, q0)
        q1 = fma(g1, load_f64(row, i + 8) - k, q1)
        i += 16
    if i + 8 <= s1:
        g0 = load_f64(grad, i)
        a0, q0 = a0 + g0, fma(g0, load_f64(row, i) - k, q0)
        i += 8
    if i < s1:
        live = s1 - i
        g1 = load_f64_part(grad, i, live)
        d1 = blend(load_f64_part(row, i, live) - k, splat_f64(0.0), live)
        a1, q1 = a1 + g1, fma(g1, d1, q1)
    store(sums, at, a0 + a1)
    store(sums, at + 8, q0 + q1)


@part
def accumulate_gradient_columns(
    row, grad, stride, grad_stride, rows, at, row_ahead, grad_ahead, line, width, work
):
    """Add sum(dy) and sum(dy * (x - mean)) of 16 columns; see `accumulate_columns`."""
    q = p = at
    k0, k1 = load_f64(work, 4 * width + at), load_f64(work, 4 * width + at + 8)
    a0, a1 = load_f64(work, at), load_f64(work, at + 8)
    q0, q1 = load_f64(work, width + at), load_f64(work, width + at + 8)
    for _ in range(rows):
        prefetch(row_ahead, line)
        prefetch(grad_ahead, line)
        line += 16
        g0, g1 = load_f64(grad, p), load_f64(grad, p + 8)
        a0, a1 = a0 + g0, a1 + g1
        q0 = fma(g0, load_f64(row, q) - k0, q0)
        q1 = fma(g1, load_f64(row, q + 8) - k1, q1)
        q += stride
        p += grad_stride
    store(work, at, a0)
    store(work, at + 8, a1)
    store(work, width + at, q0)
    store(work, width + at + 8, q1)


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
