"""Range kernels that normalize: y = (x - center) * scale + shift.

`center` is the mean rounded to the precision of the arithmetic, and `shift` makes up for what the
rounding left over, so that an offset of any size costs no digits of y:

    scale = weight / sqrt(var + eps),    shift = bias - (mean - center) * scale
"""

import math

from .integers import maximum, minimum
from .jit import inlined
from .lanewise import bounded, canonical, fma, inverse_root, rounded
from .memory import (
    REPEATED,
    adjacent,
    dense,
    fill,
    load,
    load_lanes,
    load_part,
    row_at,
    store,
    store_lanes,
    store_part,
    stream,
    unaligned,
)
from .parts import by_rank, part
from .plan import slab_bounds
from .prefetching import prefetch
from .simd import blend, lanes, splat, splat_f64

# Columns of a row in the rc view above which rows of 4 or 8 bytes an element are written two at a
# time: the coefficients of more would not stay in L1 from row to row (16.8 million elements, AVX2:
# float32 a tenth less, float64 a fifth; of 2 bytes a seventh more).
WIDE = 2048
# Elements of a row, of two, between a prefetch and its use.
NEAR = 256
# Bytes of a run that is written past the caches, if the whole output is: the lines that it begins
# and ends in are not (16 MB in rows of 80 bytes: 4.5 ms in the caches, 10.1 past them; of 400: 3.0
# and 3.5).
STREAMED_RUN = 2048
# Bytes, a page, at whose distance a CPU takes two addresses for one until it knows better.
ALIASED = 4096


@inlined
def inverse_std(var, eps):
    """Return 1 / sqrt(var + eps), and 0 where both are 0, as PyTorch does.

    Without vectors: what needs no other kernel works without the compiler. See `inverse_root`.
    """
    spread = var + eps
    return 1.0 / math.sqrt(spread if spread != 0.0 else math.inf)


@inlined
def write_inverse_std(begin, end, m2, count, eps, invstd):
    """Write ``inverse_std(m2 / count, eps)`` for a range of channels."""
    size, more = splat_f64(float(count)), splat_f64(eps)
    for c in range(begin, end, 8):
        spread = load_lanes(m2, c, end - c) / size + more
        store_lanes(invstd, c, end - c, inverse_root(spread))


@part
def normalize_coefficients(begin, end, mean, rest, invstd, weight, bias, coefs):
    """Write center, scale, shift of a range of channels; see `repeat_coefficients`.

    `rest` is what float64 has no room for of the mean. An empty weight stands for ones, an empty
    rest or bias for zeros.
    """
    at = first_coefficient(begin, mean.size, coefs)
    centers, scales, shifts = row_at(coefs, (0, at)), row_at(coefs, (1, at)), row_at(coefs, (2, at))
    for c in range(begin, end, 8):
        live = end - c
        scale = load_lanes(invstd, c, live)
        if weight.size:
            scale = scale * load_lanes(weight, c, live)
        scale = bounded(coefs, scale)
        exact = load_lanes(mean, c, live)
        center = rounded(coefs, exact)
        left = exact - center
        if rest.size:
            left = left + load_lanes(rest, c, live)
        shift = splat_f64(0.0)
        if bias.size:
            shift = load_lanes(bias, c, live)
        store_lanes(centers, c - begin, live, canonical(center))
        store_lanes(scales, c - begin, live, canonical(scale))
        store_lanes(shifts, c - begin, live, canonical(shift - left * scale))


@inlined
def columns_of_channel(coefs, channels):
    """Return how many columns a channel has in `coefs`: one, or in the rc view all of a row."""
    return (coefs.shape[1] - REPEATED) // channels


@inlined
def first_coefficient(begin, channels, coefs):
    """Return the column of the coefficients of the first one of a range of channels.

    Those of the others follow it, until they are repeated.
    """
    return begin * columns_of_channel(coefs, channels)


@part
def repeat_coefficients(begin, end, channels, coefs):
    """Write the coefficients of a range of channels to all their columns of the rc view.

    Those of the first columns follow once more on those of the last, as a vector may begin in one
    row and end in the next one.
    """
    s = columns_of_channel(coefs, channels)
    if s > 1:
        for k in range(coefs.shape[0]):
            row = row_at(coefs, (k,))
            for c in range(end - 1, begin - 1, -1):  # no column is written before it is read
                fill(row, c * s, s, splat(row, coefs[k, begin * s + c - begin]))
    columns = coefs.shape[1] - REPEATED
    if begin == 0 and end * s == columns:
        for k in range(coefs.shape[0]):
            for i in range(REPEATED):
                coefs[k, columns + i] = coefs[k, i]


@inlined
def streams_runs(plan, size):
    """Return whether an output in runs of `size` bytes is written past the caches."""
    return plan.streaming != 0 and size >= STREAMED_RUN


@inlined
def store_live(out, i, live, value, streaming):
    """Write the first `live` lanes of a vector, past the caches if that is wanted and possible."""
    if live < lanes(out):
        store_part(out, i, live, value)
    elif streaming:
        stream(out, i, value)
    else:
        store(out, i, value)


@inlined
def next_channel(c, coefs):
    """Return the channel after c, behind the last one the first."""
    return c + 1 if c + 1 < coefs.shape[1] - REPEATED else 0


@part
def normalize_rows(row, out, begin, end, c, s, coefs, streaming, ahead, reach):
    """Write the normalized ``row[begin:end]``, a row of channel c that may go on into others.

    The rows of the next channels then follow, each of `s` elements, behind the last one those of
    the next image. A vector that reaches over the end of a row is normalized for each channel that
    it has a part in: so `out` is written in whole vectors however short its rows are, and can be
    streamed.

    While a row is streamed, that of `ahead` is fetched, `reach` values further on.
    """
    step = lanes(row)
    i, edge = begin, s
    aligned = minimum(end, begin + unaligned(out, begin)) if streaming else begin
    vc, vs, vb = splat(row, coefs[0, c]), splat(row, coefs[1, c]), splat(row, coefs[2, c])
    while i < end:
        if i == edge:
            c, edge = next_channel(c, coefs), edge + s
            vc, vs, vb = splat(row, coefs[0, c]), splat(row, coefs[1, c]), splat(row, coefs[2, c])
        if i >= aligned:
            last = minimum(edge, end)
            if streaming:
                while i + step <= last:
                    prefetch(ahead, i + reach)
                    stream(out, i, fma(load(row, i) - vc, vs, vb))
                    i += step
            while i + 2 * step <= last:
                v0, v1 = load(row, i) - vc, load(row, i + step) - vc
                store(out, i, fma(v0, vs, vb))
                store(out, i + step, fma(v1, vs, vb))
                i += 2 * step
            if i + step <= last:
                store(out, i, fma(load(row, i) - vc, vs, vb))
                i += step
            if i == last:
                continue
        live = minimum(step, (end if i >= aligned else aligned) - i)
        x = load(row, i) if live == step else load_part(row, i, live)
        v = fma(x - vc, vs, vb)
        while edge < i + live:
            c = next_channel(c, coefs)
            vc, vs, vb = splat(row, coefs[0, c]), splat(row, coefs[1, c]), splat(row, coefs[2, c])
            v = blend(v, fma(x - vc, vs, vb), edge - i)
            edge += s
        store_live(out, i, live, v, streaming and i >= aligned)
        i += live


def normalize_slab_ncs(x, slab, begin, end, plan, coefs, y, ahead, reach):
    """Normalize one slab of x[n, c, s] for a range of channels.

    Meanwhile values are fetched that stand `ahead` channels and `reach` values further on.
    """
    n, _, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    together = s1 - s0 == s and adjacent(x) and adjacent(y)
    # Steps that the compiler knows not to be 0 leave no path that raises an exception.
    run = maximum(1, end - begin) if together else 1
    follow = together and run == x.shape[1] and dense(x) and dense(y)
    images = maximum(1, n1 - n0) if follow else 1
    size = (images * run - 1) * s + s1 - s0
    streaming = streams_runs(plan, size * x.itemsize)
    for i in range(n0, n1, images):
        for c in range(begin, end, run):
            row, out = row_at(x, (i, c)), row_at(y, (i, c))
            row_ahead = row_at(x, (i, minimum(c + ahead, x.shape[1] - 1)))
            normalize_rows(row, out, s0, s0 + size, c, s, coefs, streaming, row_ahead, reach)


@part
def normalize_run(row, out, begin, size, coefs, streaming, reach):
    """Write `size` values that follow on ``row[begin]``, which is of column `begin`.

    The columns come round again behind the last one, as in rows that stand side by side.
    """
    centers, scales, shifts = row_at(coefs, (0,)), row_at(coefs, (1,)), row_at(coefs, (2,))
    columns = coefs.shape[1] - REPEATED
    step = lanes(row)
    turn = step % columns
    q = i = begin
    end = begin + size
    head = minimum(end, begin + unaligned(out, begin)) if streaming else begin
    while i < head:
        part = minimum(head - i, step)
        v = load_part(row, i, part) - load(centers, q)
        store_part(out, i, part, fma(v, load(scales, q), load(shifts, q)))
        i += part
        q = (q + part) % columns
    if streaming:
        while i + step <= end:
            prefetch(row, i + reach)
            v = load(row, i) - load(centers, q)
            stream(out, i, fma(v, load(scales, q), load(shifts, q)))
            i += step
            q = q + turn - columns if q + turn >= columns else q + turn
    while i + step <= end:
        v = load(row, i) - load(centers, q)
        store(out, i, fma(v, load(scales, q), load(shifts, q)))
        i += step
        q = q + turn - columns if q + turn >= columns else q + turn
    if i < end:
        v = load_part(row, i, end - i) - load(centers, q)
        store_part(out, i, end - i, fma(v, load(scales, q), load(shifts, q)))


@inlined
def normalize_vector(row, out, i, centers, scales, shifts, streaming):
    """Write a vector of columns from i on, and fetch what is some vectors further on."""
    prefetch(row, i + NEAR)
    v = load(row, i) - load(centers, i)
    store_live(out, i, lanes(row), fma(v, load(scales, i), load(shifts, i)), streaming)


@part
def normalize_wide_rows(x, i, begin, end, coefs, y, streaming):
    """Normalize two rows from x[i] on side by side, so that they share reads of coefficients.

    The first one is so far ahead that what is written to the two is half a page apart, whatever the
    length of the rows: with writes at one place of two pages, a read of that place of a third waits
    (rows of 4096 float32: 4 ms, or 8 to 25 where y begins up to 200 bytes behind x in a page).
    """
    x0, x1, y0, y1 = row_at(x, (i,)), row_at(x, (i + 1,)), row_at(y, (i,)), row_at(y, (i + 1,))
    centers, scales, shifts = row_at(coefs, (0,)), row_at(coefs, (1,)), row_at(coefs, (2,))
    step, page = lanes(x), ALIASED // y.itemsize
    lead = (y.strides[0] // y.itemsize + page // 2) % page // step * step
    i0, i1 = begin + unaligned(y0, begin) + lead, begin + unaligned(y1, begin)
    size = (end - maximum(i0, i1)) // step * step
    normalize_run(x0, y0, begin, i0 - begin, coefs, streaming, NEAR)
    normalize_run(x1, y1, begin, i1 - begin, coefs, streaming, NEAR)
    for offset in range(0, size, step):
        normalize_vector(x0, y0, i0 + offset, centers, scales, shifts, streaming)
        normalize_vector(x1, y1, i1 + offset, centers, scales, shifts, streaming)
    normalize_run(x0, y0, i0 + size, end - i0 - size, coefs, streaming, NEAR)
    normalize_run(x1, y1, i1 + size, end - i1 - size, coefs, streaming, NEAR)


def normalize_slab_rc(x, slab, begin, end, plan, coefs, y, ahead, reach):
    """Normalize one slab of x[r, q] for a range of columns.

    Meanwhile values are fetched that stand `ahead` columns and `reach` values further on.
    """
    rows, columns = x.shape
    n0, n1, _, _ = slab_bounds(rows, 1, plan, slab)
    if end - begin > WIDE and x.itemsize > 2:
        while n0 + 2 <= n1:
            normalize_wide_rows(x, n0, begin, end, coefs, y, plan.streaming != 0)
            n0 += 2
    whole = end - begin == columns and adjacent(x) and adjacent(y)
    run = maximum(1, n1 - n0) if whole else 1
    size = run * (end - begin)
    streaming = streams_runs(plan, size * x.itemsize)
    for i in range(n0, n1, run):
        row, out = row_at(x, (i,)), row_at(y, (i,))
        normalize_run(row, out, begin, size, coefs, streaming, ahead + reach)


normalize_slab = by_rank(normalize_slab_ncs, normalize_slab_rc)
