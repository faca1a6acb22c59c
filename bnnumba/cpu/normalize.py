"""Range kernels that normalize: y = (x - center) * scale + shift.

`center` is the mean rounded to the precision of the arithmetic, and `shift` makes up for what the
rounding left over, so that an offset of any size costs no digits of y:

    scale = weight / sqrt(var + eps),    shift = bias - (mean - center) * scale
"""

import math

from .jit import inlined
from .plan import slab_bounds
from .simd import (
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


@inlined
def normalize_row(row, out, begin, end, center, scale, shift, streaming):
    """Write the normalized ``row[begin:end]`` of one channel to `out`."""
    step = lanes(row)
    vc, vs, vb = splat(row, center), splat(row, scale), splat(row, shift)
    i = begin
    if streaming:
        head = min(end - begin, unaligned(out, begin))
        while head > 0:
            part = min(head, step)
            store_part(out, i, part, fma(load_part(row, i, part) - vc, vs, vb))
            i += part
            head -= part
        while i + step <= end:
            stream(out, i, fma(load(row, i) - vc, vs, vb))
            i += step
    while i + 2 * step <= end:
        v0, v1 = load(row, i) - vc, load(row, i + step) - vc
        store(out, i, fma(v0, vs, vb))
        store(out, i + step, fma(v1, vs, vb))
        i += 2 * step
    if i + step <= end:
        store(out, i, fma(load(row, i) - vc, vs, vb))
        i += step
    if i < end:
        part = end - i
        store_part(out, i, part, fma(load_part(row, i, part) - vc, vs, vb))


@inlined
def normalize_slab_ncs(x, slab, begin, end, plan, coefs, y, streaming):
    """Normalize one slab of x[n, c, s] for a range of channels, last rows first.

    What the sweep before read last is still in the cache.
    """
    n, _, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    for i in range(n1 - 1, n0 - 1, -1):
        for c in range(begin, end):
            normalize_row(
                x[i, c], y[i, c], s0, s1, coefs[0, c], coefs[1, c], coefs[2, c], streaming
            )


@inlined
def normalize_slab_rc(x, slab, begin, end, plan, coefs, y, streaming):
    """Normalize one slab of x[r, c] for a range of channels, last rows first."""
    n0, n1, _, _ = slab_bounds(x.shape[0], 1, plan, slab)
    centers, scales, shifts = coefs[0], coefs[1], coefs[2]
    step = lanes(x)
    for i in range(n1 - 1, n0 - 1, -1):
        row, out = x[i], y[i]
        c = begin
        if streaming:
            head = min(end - begin, unaligned(out, begin))
            while head > 0:
                part = min(head, step)
                v = load_part(row, c, part) - load_part(centers, c, part)
                v = fma(v, load_part(scales, c, part), load_part(shifts, c, part))
                store_part(out, c, part, v)
                c += part
                head -= part
            while c + step <= end:
                v = fma(load(row, c) - load(centers, c), load(scales, c), load(shifts, c))
                stream(out, c, v)
                c += step
        while c + step <= end:
            v = fma(load(row, c) - load(centers, c), load(scales, c), load(shifts, c))
            store(out, c, v)
            c += step
        if c < end:
            part = end - c
            v = load_part(row, c, part) - load_part(centers, c, part)
            v = fma(v, load_part(scales, c, part), load_part(shifts, c, part))
            store_part(out, c, part, v)
