"""Range kernels that normalize: y = (x - center) * scale + shift.

`center` is the mean rounded to the precision of the arithmetic, and `shift` makes up for what the
rounding left over, so that an offset of any size costs no digits of y:

    scale = weight / sqrt(var + eps),    shift = bias - (mean - center) * scale
"""

import math

from .jit import inlined, part
from .plan import slab_bounds
from .simd import (
    adjacent,
    fma,
    lanes,
    load,
    load_part,
    rounded,
    splat,
    store,
    store_part,
    stream,
    unaligned,
)


@inlined
def inverse_std(var, eps):
    """Return 1 / sqrt(var + eps), and 0 where both are 0, as PyTorch does."""
    spread = var + eps
    return 1.0 / math.sqrt(spread) if spread != 0.0 else 0.0


@inlined
def write_inverse_std(begin, end, var, divisor, eps, invstd):
    """Write 1 / sqrt(var / divisor + eps) for a range of channels."""
    for c in range(begin, end):
        invstd[c] = inverse_std(var[c] / divisor, eps)


@inlined
def normalize_coefficients(begin, end, mean, invstd, weight, bias, coefs):
    """Write ``coefs[:, c] = center, scale, shift``.

    An empty weight or bias stands for ones or zeros.
    """
    for c in range(begin, end):
        scale = invstd[c]
        if weight.size:
            scale *= weight[c]
        center = rounded(coefs, mean[c])
        shift = -(mean[c] - center) * scale
        if bias.size:
            shift += bias[c]
        coefs[0, c] = center
        coefs[1, c] = scale
        coefs[2, c] = shift


@part
def stream_out(stage, size, out, at):
    """Write ``stage[:size]`` to the elements from ``out[at]`` on, past the caches."""
    step = lanes(stage)
    i = min(size, unaligned(out, at))
    k = 0
    while k < i:
        part = min(i - k, step)
        store_part(out, at + k, part, load_part(stage, k, part))
        k += part
    while i + step <= size:
        stream(out, at + i, load(stage, i))
        i += step
    if i < size:
        store_part(out, at + i, size - i, load_part(stage, i, size - i))


@part
def normalize_row(row, begin, end, out, at, center, scale, shift, streaming):
    """Write the normalized ``row[begin:end]`` of one channel from ``out[at]`` on."""
    step = lanes(row)
    vc, vs, vb = splat(row, center), splat(row, scale), splat(row, shift)
    i = begin
    k = at - begin
    if streaming:
        head = min(end, begin + unaligned(out, at))
        while i < head:
            part = min(head - i, step)
            store_part(out, k + i, part, fma(load_part(row, i, part) - vc, vs, vb))
            i += part
        while i + step <= end:
            stream(out, k + i, fma(load(row, i) - vc, vs, vb))
            i += step
    while i + 2 * step <= end:
        v0, v1 = load(row, i) - vc, load(row, i + step) - vc
        store(out, k + i, fma(v0, vs, vb))
        store(out, k + i + step, fma(v1, vs, vb))
        i += 2 * step
    if i + step <= end:
        store(out, k + i, fma(load(row, i) - vc, vs, vb))
        i += step
    if i < end:
        part = end - i
        store_part(out, k + i, part, fma(load_part(row, i, part) - vc, vs, vb))


@part
def normalize_slab_ncs(x, slab, begin, end, plan, coefs, y, streaming, stage):
    """Normalize one slab of x[n, c, s] for a range of channels, last rows first.

    What the sweep before read last is still in the cache. Where there is a stage, y is streamed
    through it, as many rows at a time as it holds and as stand side by side in y: the ends of
    short rows could not be streamed each by itself. (Long rows lose by it: writes in bursts keep
    the reads waiting, 8.0 ms against 5.6 for 100 MB.)
    """
    n, channels, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    group = staged_rows(stage, s, adjacent(y[0, 0], y[0, min(1, channels - 1)], s))
    for i in range(n1 - 1, n0 - 1, -1):
        for c in range(begin, end, group):
            if stage.size == 0:
                center, scale, shift = coefs[0, c], coefs[1, c], coefs[2, c]
                normalize_row(x[i, c], s0, s1, y[i, c], s0, center, scale, shift, streaming)
                continue
            last = min(end, c + group)
            for j in range(s0, s1, stage.size):
                size = min(s1, j + stage.size) - j
                for d in range(c, last):
                    at = (d - c) * size
                    center, scale, shift = coefs[0, d], coefs[1, d], coefs[2, d]
                    normalize_row(x[i, d], j, j + size, stage, at, center, scale, shift, False)
                stream_out(stage, (last - c) * size, y[i, c], j)


@inlined
def staged_rows(stage, width, side_by_side):
    """Return how many rows of `width` elements go through the stage at a time."""
    return max(1, stage.size // width) if side_by_side else 1


@part
def normalize_columns(row, begin, end, coefs, out, at, streaming):
    """Write the normalized channels ``row[begin:end]`` from ``out[at]`` on."""
    centers, scales, shifts = coefs[0], coefs[1], coefs[2]
    step = lanes(row)
    c = begin
    k = at - begin
    if streaming:
        head = min(end, begin + unaligned(out, at))
        while c < head:
            part = min(head - c, step)
            v = load_part(row, c, part) - load_part(centers, c, part)
            v = fma(v, load_part(scales, c, part), load_part(shifts, c, part))
            store_part(out, k + c, part, v)
            c += part
        while c + step <= end:
            v = fma(load(row, c) - load(centers, c), load(scales, c), load(shifts, c))
            stream(out, k + c, v)
            c += step
    while c + step <= end:
        v = fma(load(row, c) - load(centers, c), load(scales, c), load(shifts, c))
        store(out, k + c, v)
        c += step
    if c < end:
        part = end - c
        v = load_part(row, c, part) - load_part(centers, c, part)
        v = fma(v, load_part(scales, c, part), load_part(shifts, c, part))
        store_part(out, k + c, part, v)


@part
def normalize_slab_rc(x, slab, begin, end, plan, coefs, y, streaming, stage):
    """Normalize one slab of x[r, c] for a range of channels, last rows first."""
    rows, channels = x.shape
    n0, n1, _, _ = slab_bounds(rows, 1, plan, slab)
    whole = end - begin == channels and adjacent(y[0], y[min(1, rows - 1)], channels)
    group = staged_rows(stage, end - begin, whole)
    for last in range(n1, n0, -group):
        i = max(n0, last - group)
        if stage.size == 0:
            normalize_columns(x[i], begin, end, coefs, y[i], begin, streaming)
            continue
        for c in range(begin, end, stage.size):
            size = min(end, c + stage.size) - c
            for r in range(i, last):
                normalize_columns(x[r], c, c + size, coefs, stage, (r - i) * size, False)
            stream_out(stage, (last - i) * size, y[i], c)
