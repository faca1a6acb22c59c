"""Range kernels of the backward pass.

With M values per channel and xmu = x - mean (Ioffe & Szegedy 2015; PyTorch's Normalization.cuh):

    sum_dy = sum(dy),    sum_dy_xmu = sum(dy * xmu)
    dx = (dy - sum_dy / M - xmu * invstd^2 * sum_dy_xmu / M) * invstd * weight
    dweight = sum_dy_xmu * invstd,    dbias = sum_dy

The sums are float64; dx is a * dy + b * (x - center) + rest with coefficients per channel, where
`center` is the mean rounded to the precision of the arithmetic, as in `normalize`.
"""

from .jit import inlined, part
from .moments import WORKSPACE, load_lanes
from .normalize import staged_rows, stream_out
from .plan import slab_bounds
from .simd import (
    BLOCK,
    adjacent,
    fma,
    hsum,
    lanes,
    load,
    load_f64,
    load_f64_part,
    load_part,
    prefetch,
    prefetch_block,
    prefetch_distance,
    rounded,
    select_part,
    splat,
    splat_f64,
    store,
    store_part,
    stream,
    unaligned,
)


@inlined
def accumulate_gradient_row(row, grad, s0, s1, mean, row_ahead, grad_ahead, turn, sums, at):
    """Add sum(dy) and sum(dy * (x - mean)) of s0 to s1 to the lanes ``sums[at:at + 16]``."""
    k = splat_f64(mean)
    distance = prefetch_distance(row)
    a0, q0 = load_f64(sums, at), load_f64(sums, at + 8)
    a1 = a2 = a3 = q1 = q2 = q3 = splat_f64(0.0)
    i = s0
    while i < s1:
        if i < turn:
            prefetch_block(row, i + distance)
            prefetch_block(grad, i + distance)
        else:
            prefetch_block(row_ahead, i - turn)
            prefetch_block(grad_ahead, i - turn)
        stop = min(s1, i + BLOCK)
        while i + 32 <= stop:
            g0 = load_f64(grad, i)
            g1 = load_f64(grad, i + 8)
            g2 = load_f64(grad, i + 16)
            g3 = load_f64(grad, i + 24)
            a0, a1, a2, a3 = a0 + g0, a1 + g1, a2 + g2, a3 + g3
            q0 = fma(g0, load_f64(row, i) - k, q0)
            q1 = fma(g1, load_f64(row, i + 8) - k, q1)
            q2 = fma(g2, load_f64(row, i + 16) - k, q2)
            q3 = fma(g3, load_f64(row, i + 24) - k, q3)
            i += 32
        while i + 8 <= stop:
            g0 = load_f64(grad, i)
            a0, q0 = a0 + g0, fma(g0, load_f64(row, i) - k, q0)
            i += 8
        if i < stop:
            live = stop - i
            g1 = load_f64_part(grad, i, live)
            a1, q1 = a1 + g1, fma(g1, select_part(load_f64_part(row, i, live) - k, live), q1)
            i = stop
    store(sums, at, (a0 + a1) + (a2 + a3))
    store(sums, at + 8, (q0 + q1) + (q2 + q3))


@part
def reduce_slab_ncs(x, dy, slab, begin, end, plan, work, mean, sum_dy, sum_dy_xmu):
    """Write the two sums over one slab of x[n, c, s] for a range of channels."""
    n, channels, s = x.shape
    zero = splat_f64(0.0)
    span = (end - begin) * s - prefetch_distance(x)
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    for c in range(begin, end):
        at = (c - begin) * WORKSPACE
        store(work, at, zero)
        store(work, at + 8, zero)
    for i in range(n0, n1):
        if i + 1 < n:
            row_ahead, grad_ahead = x[i + 1, begin], dy[i + 1, begin]
        else:
            row_ahead, grad_ahead = x[0, min(end, channels - 1)], dy[0, min(end, channels - 1)]
        for c in range(begin, end):
            at = (c - begin) * WORKSPACE
            turn = span - (c - begin) * s
            accumulate_gradient_row(
                x[i, c], dy[i, c], s0, s1, mean[c], row_ahead, grad_ahead, turn, work, at
            )
    for c in range(begin, end):
        at = (c - begin) * WORKSPACE
        sum_dy[c] = hsum(load_f64(work, at))
        sum_dy_xmu[c] = hsum(load_f64(work, at + 8))


@part
def reduce_slab_rc(x, dy, slab, begin, end, plan, work, mean, sum_dy, sum_dy_xmu):
    """Write the two sums over one slab of x[r, c] for a range of channels."""
    r = x.shape[0]
    width = (end - begin + 7) // 8 * 8
    far = 2 + prefetch_distance(x) // (end - begin)
    n0, n1, _, _ = slab_bounds(r, 1, plan, slab)
    for at in range(0, 2 * width, 8):
        store(work, at, splat_f64(0.0))
    i = n0
    while i + 2 <= n1:
        r0, r1, g0, g1 = x[i], x[i + 1], dy[i], dy[i + 1]
        ahead = min(i + far, r - 2)
        fr0, fr1, fg0, fg1 = x[ahead], x[ahead + 1], dy[ahead], dy[ahead + 1]
        for at in range(0, width, 8):
            c = begin + at
            live = end - c
            prefetch(fr0, c)
            prefetch(fr1, c)
            prefetch(fg0, c)
            prefetch(fg1, c)
            k = load_lanes(mean, c, live)
            v0, v1 = load_lanes(g0, c, live), load_lanes(g1, c, live)
            q = fma(v0, load_lanes(r0, c, live) - k, load_f64(work, width + at))
            store(work, width + at, fma(v1, load_lanes(r1, c, live) - k, q))
            store(work, at, load_f64(work, at) + (v0 + v1))
        i += 2
    while i < n1:
        row, grad = x[i], dy[i]
        for at in range(0, width, 8):
            c = begin + at
            live = end - c
            v0 = load_lanes(grad, c, live)
            d0 = load_lanes(row, c, live) - load_lanes(mean, c, live)
            store(work, width + at, fma(v0, d0, load_f64(work, width + at)))
            store(work, at, load_f64(work, at) + v0)
        i += 1
    for c in range(begin, end):
        sum_dy[c] = work[c - begin]
        sum_dy_xmu[c] = work[width + c - begin]


@inlined
def add_slabs(begin, end, plan, partial, sums):
    """Add ``partial[slab]`` over the slabs, in order, for a range of channels."""
    for c in range(begin, end):
        sums[0, c] = partial[0, 0, c]
        sums[1, c] = partial[0, 1, c]
    for slab in range(1, plan[0]):
        for c in range(begin, end):
            sums[0, c] += partial[slab, 0, c]
            sums[1, c] += partial[slab, 1, c]


@inlined
def parameter_gradients(begin, end, invstd, sums, dweight, dbias):
    """Write dweight and dbias for a range of channels."""
    for c in range(begin, end):
        dweight[c] = sums[1, c] * invstd[c]
        dbias[c] = sums[0, c]


@inlined
def input_coefficients(begin, end, count, mean, invstd, sums, weight, coefs):
    """Write ``coefs[:, c] = center, a, b, rest``, so that dx = a * dy + b * (x - center) + rest."""
    for c in range(begin, end):
        a = invstd[c]
        if weight.size:
            a *= weight[c]
        b = -a * (invstd[c] * invstd[c]) * (sums[1, c] / count)
        center = rounded(coefs, mean[c])
        coefs[0, c] = center
        coefs[1, c] = a
        coefs[2, c] = b
        coefs[3, c] = -a * (sums[0, c] / count) - b * (mean[c] - center)


@part
def input_row(row, grad, begin, end, out, at, center, a, b, rest, streaming):
    """Write dx for ``row[begin:end]`` of one channel from ``out[at]`` on."""
    step = lanes(row)
    vc, va, vb, vr = splat(row, center), splat(row, a), splat(row, b), splat(row, rest)
    i = begin
    k = at - begin
    if streaming:
        head = min(end, begin + unaligned(out, at))
        while i < head:
            part = min(head - i, step)
            v = fma(load_part(row, i, part) - vc, vb, vr)
            store_part(out, k + i, part, fma(load_part(grad, i, part), va, v))
            i += part
        while i + step <= end:
            stream(out, k + i, fma(load(grad, i), va, fma(load(row, i) - vc, vb, vr)))
            i += step
    while i + step <= end:
        store(out, k + i, fma(load(grad, i), va, fma(load(row, i) - vc, vb, vr)))
        i += step
    if i < end:
        part = end - i
        v = fma(load_part(row, i, part) - vc, vb, vr)
        store_part(out, k + i, part, fma(load_part(grad, i, part), va, v))


@part
def input_slab_ncs(x, dy, slab, begin, end, plan, coefs, dx, streaming, stage):
    """Write dx for one slab of x[n, c, s] and a range of channels; see `normalize_slab_ncs`."""
    n, channels, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    group = staged_rows(stage, s, adjacent(dx[0, 0], dx[0, min(1, channels - 1)], s))
    for i in range(n1 - 1, n0 - 1, -1):
        for c in range(begin, end, group):
            if stage.size == 0:
                center, a, b, rest = coefs[0, c], coefs[1, c], coefs[2, c], coefs[3, c]
                out = dx[i, c]
                input_row(x[i, c], dy[i, c], s0, s1, out, s0, center, a, b, rest, streaming)
                continue
            last = min(end, c + group)
            for j in range(s0, s1, stage.size):
                k = min(s1, j + stage.size)
                for d in range(c, last):
                    at = (d - c) * (k - j)
                    center, a, b, rest = coefs[0, d], coefs[1, d], coefs[2, d], coefs[3, d]
                    input_row(x[i, d], dy[i, d], j, k, stage, at, center, a, b, rest, False)
                stream_out(stage, (last - c) * (k - j), dx[i, c], j)


@inlined
def input_part(row, grad, coefs, c, live):
    """Return dx for fewer channels than a vector holds."""
    v = load_part(row, c, live) - load_part(coefs[0], c, live)
    v = fma(v, load_part(coefs[2], c, live), load_part(coefs[3], c, live))
    return fma(load_part(grad, c, live), load_part(coefs[1], c, live), v)


@part
def input_columns(row, grad, begin, end, coefs, out, at, streaming):
    """Write dx for the channels ``row[begin:end]`` from ``out[at]`` on."""
    centers, factors, slopes, rests = coefs[0], coefs[1], coefs[2], coefs[3]
    step = lanes(row)
    c = begin
    k = at - begin
    if streaming:
        head = min(end, begin + unaligned(out, at))
        while c < head:
            part = min(head - c, step)
            store_part(out, k + c, part, input_part(row, grad, coefs, c, part))
            c += part
        while c + step <= end:
            v = fma(load(row, c) - load(centers, c), load(slopes, c), load(rests, c))
            stream(out, k + c, fma(load(grad, c), load(factors, c), v))
            c += step
    while c + step <= end:
        v = fma(load(row, c) - load(centers, c), load(slopes, c), load(rests, c))
        store(out, k + c, fma(load(grad, c), load(factors, c), v))
        c += step
    if c < end:
        store_part(out, k + c, end - c, input_part(row, grad, coefs, c, end - c))


@part
def input_slab_rc(x, dy, slab, begin, end, plan, coefs, dx, streaming, stage):
    """Write dx for one slab of x[r, c] and a range of channels; see `normalize_slab_rc`."""
    rows, channels = x.shape
    n0, n1, _, _ = slab_bounds(rows, 1, plan, slab)
    whole = end - begin == channels and adjacent(dx[0], dx[min(1, rows - 1)], channels)
    group = staged_rows(stage, end - begin, whole)
    for last in range(n1, n0, -group):
        i = max(n0, last - group)
        if stage.size == 0:
            input_columns(x[i], dy[i], begin, end, coefs, dx[i], begin, streaming)
            continue
        for c in range(begin, end, stage.size):
            size = min(end, c + stage.size) - c
            for r in range(i, last):
                input_columns(x[r], dy[r], c, c + size, coefs, stage, (r - i) * size, False)
            stream_out(stage, (last - i) * size, dx[i], c)
