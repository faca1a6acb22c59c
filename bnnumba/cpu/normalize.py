"""Range kernels that normalize: y = (x - center) * scale + shift.

`center` is the mean rounded to the precision of the arithmetic, and `shift` makes up for what the
rounding left over, so that an offset of any size costs no digits of y:

    scale = weight / sqrt(var + eps),    shift = bias - (mean - center) * scale
"""

import math

from .jit import inlined, part
from .plan import slab_bounds
from .simd import (
    REPEATED,
    adjacent,
    fma,
    lanes,
    load,
    load_part,
    rounded,
    row_at,
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
    repeat_first(begin, end, coefs)


@inlined
def repeat_first(begin, end, coefs):
    """Write the coefficients of the first channels once more, behind those of the last.

    A vector of the rc view may begin in one row and end in the next one.
    """
    channels = coefs.shape[1] - REPEATED
    if begin == 0 and end == channels:
        for k in range(coefs.shape[0]):
            for i in range(REPEATED):
                coefs[k, channels + i] = coefs[k, i]


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
    if i + step <= end:
        # The last vector overlaps the one before; it is read first, as out may be the row itself.
        tail = fma(load(row, end - step) - vc, vs, vb)
        while i + 2 * step < end:
            v0, v1 = load(row, i) - vc, load(row, i + step) - vc
            store(out, k + i, fma(v0, vs, vb))
            store(out, k + i + step, fma(v1, vs, vb))
            i += 2 * step
        if i + step < end:
            store(out, k + i, fma(load(row, i) - vc, vs, vb))
        store(out, k + end - step, tail)
    elif i < end:
        part = end - i
        store_part(out, k + i, part, fma(load_part(row, i, part) - vc, vs, vb))


@part
def normalize_slab_ncs(x, slab, begin, end, plan, coefs, y, streaming, stage):
    """Normalize one slab of x[n, c, s] for a range of channels.

    Where there is a stage, y is streamed through it, as many rows at a time as it holds and as
    stand side by side in y: the ends of short rows could not be streamed each by itself. (Long rows
    lose by it: writes in bursts keep the reads waiting, 8.0 ms against 5.6 for 100 MB.)
    """
    n, channels, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    group = staged_rows(
        stage, s, adjacent(row_at(y, (0, 0)), row_at(y, (0, min(1, channels - 1))), s)
    )
    staged = row_at(stage, (0,))
    for i in range(n0, n1):
        for c in range(begin, end, group):
            if stage.size == 0:
                center, scale, shift = coefs[0, c], coefs[1, c], coefs[2, c]
                row, out = row_at(x, (i, c)), row_at(y, (i, c))
                normalize_row(row, s0, s1, out, s0, center, scale, shift, streaming)
                continue
            last = min(end, c + group)
            for j in range(s0, s1, stage.size):
                size = min(s1, j + stage.size) - j
                for d in range(c, last):
                    at = (d - c) * size
                    center, scale, shift = coefs[0, d], coefs[1, d], coefs[2, d]
                    row = row_at(x, (i, d))
                    normalize_row(row, j, j + size, staged, at, center, scale, shift, False)
                stream_out(staged, (last - c) * size, row_at(y, (i, c)), j)


@inlined
def staged_rows(stage, width, together):
    """Return how many rows of `width` elements go through the stage at a time."""
    return max(1, stage.size // width) if together else 1


@inlined
def normalize_run(row, out, begin, size, coefs, streaming):
    """Write `size` values that follow on ``row[begin]``, which is of channel `begin`.

    The channels come round again behind the last one, as in rows that stand side by side.
    """
    centers, scales, shifts = row_at(coefs, (0,)), row_at(coefs, (1,)), row_at(coefs, (2,))
    channels = coefs.shape[1] - REPEATED
    step = lanes(row)
    turn = step % channels
    c = i = begin
    end = begin + size
    if streaming:
        head = min(end, begin + unaligned(out, begin))
        while i < head:
            part = min(head - i, step)
            v = load_part(row, i, part) - load(centers, c)
            store_part(out, i, part, fma(v, load(scales, c), load(shifts, c)))
            i += part
            c = (c + part) % channels
        while i + step <= end:
            v = load(row, i) - load(centers, c)
            stream(out, i, fma(v, load(scales, c), load(shifts, c)))
            i += step
            c = c + turn - channels if c + turn >= channels else c + turn
    while i + step <= end:
        v = load(row, i) - load(centers, c)
        store(out, i, fma(v, load(scales, c), load(shifts, c)))
        i += step
        c = c + turn - channels if c + turn >= channels else c + turn
    if i < end:
        v = load_part(row, i, end - i) - load(centers, c)
        store_part(out, i, end - i, fma(v, load(scales, c), load(shifts, c)))


@part
def normalize_slab_rc(x, slab, begin, end, plan, coefs, y, streaming):
    """Normalize one slab of x[r, c] for a range of channels."""
    rows, channels = x.shape
    n0, n1, _, _ = slab_bounds(rows, 1, plan, slab)
    whole = end - begin == channels and side_by_side(x) and side_by_side(y)
    # A step that the compiler knows not to be 0 leaves no path that raises an exception.
    run = max(1, n1 - n0) if whole else 1
    for i in range(n0, n1, run):
        row, out = row_at(x, (i,)), row_at(y, (i,))
        normalize_run(row, out, begin, run * (end - begin), coefs, streaming)


@inlined
def side_by_side(x):
    """Return whether each row of x[r, c] begins where the one before ends."""
    return adjacent(row_at(x, (0,)), row_at(x, (min(1, x.shape[0] - 1),)), x.shape[1])
