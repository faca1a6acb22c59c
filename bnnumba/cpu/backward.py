"""Range kernels of the backward pass.

With M values per channel and xmu = x - mean (Ioffe & Szegedy 2015; PyTorch's Normalization.cuh):

    sum_dy = sum(dy),    sum_dy_xmu = sum(dy * xmu)
    dx = (dy - sum_dy / M - xmu * invstd^2 * sum_dy_xmu / M) * invstd * weight
    dweight = sum_dy_xmu * invstd,    dbias = sum_dy

The sums are float64; dx is a * dy + b * (x - center) + rest with coefficients per channel, where
`center` is the mean rounded to the precision of the arithmetic, as in `normalize`.
"""

from .gradient_sums import (
    accumulate_gradient_columns,
    accumulate_gradient_part,
    accumulate_gradient_row,
    accumulate_short_gradient_rows,
)
from .integers import maximum, minimum
from .jit import inlined
from .lanewise import bounded, canonical, fma, rounded
from .memory import (
    REPEATED,
    adjacent,
    dense,
    fill,
    load,
    load_f64,
    load_lanes,
    load_part,
    row_at,
    store,
    store_lanes,
    store_part,
    stream,
    unaligned,
)
from .normalize import first_coefficient, next_channel, store_live, streams_runs
from .parts import by_rank, part
from .plan import slab_bounds
from .prefetching import prefetch, prefetch_distance
from .simd import blend, hsum, lanes, splat, splat_f64, zeros_f64x16
from .sums import (
    RUN,
    SEGMENT,
    WORKSPACE,
    both_levels,
    fold,
    next_sweep,
    repeat_columns,
    row_after,
    row_group,
    rows_at_once,
    rows_of_run,
    rows_together,
    sum_columns,
)


def reduce_slab_ncs(x, dy, slab, begin, end, plan, work, mean, sum_dy, sum_dy_xmu):
    """Write the two sums over one slab of x[n, c, s] for a range of channels."""
    n, _, s = x.shape
    span = (end - begin) * s - prefetch_distance(x)
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    for c in range(begin, end):
        at = (c - begin) * 8 * WORKSPACE
        store(work, at, zeros_f64x16())
        store(work, at + 16, zeros_f64x16())
    together, rows = rows_at_once(s1 - s0), rows_of_run(s1 - s0)
    stride, grad_stride = x.strides[0] // x.itemsize, dy.strides[0] // dy.itemsize
    for i in range(n0, n1, together):
        folds = (i + together - n0) % rows == 0
        row_ahead = next_sweep(x, i + together, begin, end)
        grad_ahead = next_sweep(dy, i + together, begin, end)
        for c in range(begin, end):
            at = (c - begin) * 8 * WORKSPACE
            turn = span - (c - begin) * s
            row, grad = row_at(x, (i, c)), row_at(dy, (i, c))
            if together == 2 and i + 1 < n1:
                accumulate_short_gradient_rows(
                    row, grad, stride, grad_stride, s0, s1, mean[c], row_ahead, grad_ahead, turn,
                    work, at,
                )  # fmt: skip
                if folds:
                    fold(work, at, at + 16)
            else:
                for first in range(s0, s1, SEGMENT):
                    last = minimum(s1, first + SEGMENT)
                    accumulate_gradient_row(
                        row, grad, first, last, mean[c], row_ahead, grad_ahead, turn, work, at
                    )
                    if folds:
                        fold(work, at, at + 16)
    for c in range(begin, end):
        at = (c - begin) * 8 * WORKSPACE
        sum_dy[c] = hsum(load_f64(work, at) + load_f64(work, at + 16))
        sum_dy_xmu[c] = hsum(load_f64(work, at + 8) + load_f64(work, at + 24))


def reduce_slab_rc(x, dy, slab, begin, end, plan, work, mean, sum_dy, sum_dy_xmu):
    """Write the two sums over one slab of x[r, q] for a range of channels; see `collect_slab_rc`.

    Where that has pivots, `work` holds the means.
    """
    r, s = x.shape[0], plan.slab_columns
    column, columns = begin * s, (end - begin) * s
    n0, n1, _, _ = slab_bounds(r, s, plan, slab)
    together = rows_together(x, dy, n1 - n0, columns)
    rows, size = (n1 - n0) // together, together * columns
    width = (size + 7) // 8 * 8
    stride = x.strides[0] // x.itemsize * together
    grad_stride = dy.strides[0] // dy.itemsize * together
    group, reach, stretches = row_group(x, size, columns == x.shape[1], 2)
    for at in range(0, 4 * width, 8):
        store(work, at, splat_f64(0.0))
    if s > 1:
        for c in range(begin, end):
            fill(work, 4 * width + (c - begin) * s, s, splat_f64(mean[c]))
    else:
        for c in range(begin, end, 8):
            store(work, 4 * width + c - begin, load_lanes(mean, c, end - c))
    repeat_columns(work, 4 * width, columns, together)
    for start in range(0, rows, RUN):
        stop = minimum(rows, start + RUN)
        for first in range(start, stop, group):
            taken = minimum(stop - first, group)
            begins = (n0 + first * together, column)
            row, grad = row_at(x, begins), row_at(dy, begins)
            at = 0
            for k in range(stretches):
                after = n0 + (first + reach + k) * together
                row_ahead = row_after(x, after, column, column + columns)
                grad_ahead = row_after(dy, after, column, column + columns)
                line = 0
                until = 16 * (size // 16 * (k + 1) // stretches)
                while at < until:
                    accumulate_gradient_columns(
                        row, grad, stride, grad_stride, taken, at, row_ahead, grad_ahead, line,
                        width, work,
                    )  # fmt: skip
                    at += 16
                    line += 16 * taken
            accumulate_gradient_part(row, grad, stride, grad_stride, taken, at, size, width, work)
        for at in range(0, 2 * width, 16):
            fold(work, at, 2 * width + at)
    rest = (n1 - n0 - rows * together) * columns
    begins = (n0 + rows * together, column)
    row, grad = row_at(x, begins), row_at(dy, begins)
    accumulate_gradient_part(row, grad, 0, 0, 1, 0, rest, width, work)
    sum_columns(work, width, columns, s, together, 2)
    for c in range(begin, end, 8):
        total, product = both_levels(work, width, c - begin)
        store_lanes(sum_dy, c, end - c, total)
        store_lanes(sum_dy_xmu, c, end - c, product)


reduce_slab = by_rank(reduce_slab_ncs, reduce_slab_rc)


@part
def add_slabs(begin, end, plan, partial, rest, sums):
    """Add ``partial[slab]`` over the slabs, in order, for a range of channels.

    Those are sums over x less the mean that float64 has room for, and the rest of it.
    """
    sum_dy, sum_dy_xmu = row_at(sums, (0,)), row_at(sums, (1,))
    for c in range(begin, end, 8):
        live = end - c
        total = load_lanes(row_at(partial, (0, 0)), c, live)
        product = load_lanes(row_at(partial, (0, 1)), c, live)
        for slab in range(1, plan.slabs):
            total = total + load_lanes(row_at(partial, (slab, 0)), c, live)
            product = product + load_lanes(row_at(partial, (slab, 1)), c, live)
        if rest.size:
            product = product - load_lanes(rest, c, live) * total
        store_lanes(sum_dy, c, live, total)
        store_lanes(sum_dy_xmu, c, live, product)


@inlined
def parameter_gradients(begin, end, invstd, sums, dweight, dbias):
    """Write dweight and dbias for a range of channels."""
    sum_dy, sum_dy_xmu = row_at(sums, (0,)), row_at(sums, (1,))
    for c in range(begin, end, 8):
        live = end - c
        product = load_lanes(sum_dy_xmu, c, live) * load_lanes(invstd, c, live)
        store_lanes(dweight, c, live, product)
        store_lanes(dbias, c, live, load_lanes(sum_dy, c, live))


@part
def input_coefficients(begin, end, count, mean, rest, invstd, sums, weight, coefs):
    """Write center, a, b, rest of a range of channels; see `repeat_coefficients`.

    So dx = a * dy + b * (x - center) + rest.
    """
    at = first_coefficient(begin, mean.size, coefs)
    centers, factors = row_at(coefs, (0, at)), row_at(coefs, (1, at))
    slopes, rests = row_at(coefs, (2, at)), row_at(coefs, (3, at))
    sum_dy, sum_dy_xmu = row_at(sums, (0,)), row_at(sums, (1,))
    share, zero = splat_f64(1.0 / count), splat_f64(0.0)
    for c in range(begin, end, 8):
        live = end - c
        root = load_lanes(invstd, c, live)
        a = root
        if weight.size:
            a = a * load_lanes(weight, c, live)
        a = bounded(coefs, a)
        slope = a * (root * (root * (load_lanes(sum_dy_xmu, c, live) * share)))
        b = bounded(coefs, zero - slope)
        exact = load_lanes(mean, c, live)
        center = rounded(coefs, exact)
        left = exact - center
        if rest.size:
            left = left + load_lanes(rest, c, live)
        offset = zero - a * (load_lanes(sum_dy, c, live) * share) - b * left
        store_lanes(centers, c - begin, live, canonical(center))
        store_lanes(factors, c - begin, live, canonical(a))
        store_lanes(slopes, c - begin, live, canonical(b))
        store_lanes(rests, c - begin, live, canonical(offset))


@part
def input_rows(row, grad, out, begin, end, c, s, coefs, streaming, row_ahead, grad_ahead, reach):
    """Write dx for ``row[begin:end]``; see `normalize_rows`."""
    step = lanes(row)
    i, edge = begin, s
    aligned = minimum(end, begin + unaligned(out, begin)) if streaming else begin
    vc, va = splat(row, coefs[0, c]), splat(row, coefs[1, c])
    vb, vr = splat(row, coefs[2, c]), splat(row, coefs[3, c])
    while i < end:
        if i == edge:
            c, edge = next_channel(c, coefs), edge + s
            vc, va = splat(row, coefs[0, c]), splat(row, coefs[1, c])
            vb, vr = splat(row, coefs[2, c]), splat(row, coefs[3, c])
        if i >= aligned:
            last = minimum(edge, end)
            if streaming:
                while i + step <= last:
                    prefetch(row_ahead, i + reach)
                    prefetch(grad_ahead, i + reach)
                    stream(out, i, fma(load(grad, i), va, fma(load(row, i) - vc, vb, vr)))
                    i += step
            while i + step <= last:
                store(out, i, fma(load(grad, i), va, fma(load(row, i) - vc, vb, vr)))
                i += step
            if i == last:
                continue
        live = minimum(step, (end if i >= aligned else aligned) - i)
        x = load(row, i) if live == step else load_part(row, i, live)
        dy = load(grad, i) if live == step else load_part(grad, i, live)
        v = fma(dy, va, fma(x - vc, vb, vr))
        while edge < i + live:
            c = next_channel(c, coefs)
            vc, va = splat(row, coefs[0, c]), splat(row, coefs[1, c])
            vb, vr = splat(row, coefs[2, c]), splat(row, coefs[3, c])
            v = blend(v, fma(dy, va, fma(x - vc, vb, vr)), edge - i)
            edge += s
        store_live(out, i, live, v, streaming and i >= aligned)
        i += live


def input_slab_ncs(x, dy, slab, begin, end, plan, coefs, dx, ahead, reach):
    """Write dx for one slab of x[n, c, s] and a range of channels; see `normalize_slab_ncs`."""
    n, _, s = x.shape
    n0, n1, s0, s1 = slab_bounds(n, s, plan, slab)
    together = s1 - s0 == s and adjacent(x) and adjacent(dy) and adjacent(dx)
    run = maximum(1, end - begin) if together else 1
    follow = together and run == x.shape[1] and dense(x) and dense(dy) and dense(dx)
    images = maximum(1, n1 - n0) if follow else 1
    size = (images * run - 1) * s + s1 - s0
    streaming = streams_runs(plan, size * x.itemsize)
    for i in range(n0, n1, images):
        for c in range(begin, end, run):
            row, grad, out = row_at(x, (i, c)), row_at(dy, (i, c)), row_at(dx, (i, c))
            after = (i, minimum(c + ahead, x.shape[1] - 1))
            row_ahead, grad_ahead = row_at(x, after), row_at(dy, after)
            input_rows(
                row, grad, out, s0, s0 + size, c, s, coefs, streaming, row_ahead, grad_ahead, reach
            )


@part
def input_run(row, grad, out, begin, size, coefs, streaming, reach):
    """Write `size` values of dx that follow on ``row[begin]``; see `normalize_run`."""
    centers, factors = row_at(coefs, (0,)), row_at(coefs, (1,))
    slopes, rests = row_at(coefs, (2,)), row_at(coefs, (3,))
    columns = coefs.shape[1] - REPEATED
    step = lanes(row)
    turn = step % columns
    q = i = begin
    end = begin + size
    head = minimum(end, begin + unaligned(out, begin)) if streaming else begin
    while i < head:
        part = minimum(head - i, step)
        v = fma(load_part(row, i, part) - load(centers, q), load(slopes, q), load(rests, q))
        store_part(out, i, part, fma(load_part(grad, i, part), load(factors, q), v))
        i += part
        q = (q + part) % columns
    if streaming:
        while i + step <= end:
            prefetch(row, i + reach)
            prefetch(grad, i + reach)
            v = fma(load(row, i) - load(centers, q), load(slopes, q), load(rests, q))
            stream(out, i, fma(load(grad, i), load(factors, q), v))
            i += step
            q = q + turn - columns if q + turn >= columns else q + turn
    while i + step <= end:
        v = fma(load(row, i) - load(centers, q), load(slopes, q), load(rests, q))
        store(out, i, fma(load(grad, i), load(factors, q), v))
        i += step
        q = q + turn - columns if q + turn >= columns else q + turn
    if i < end:
        part = end - i
        v = fma(load_part(row, i, part) - load(centers, q), load(slopes, q), load(rests, q))
        store_part(out, i, part, fma(load_part(grad, i, part), load(factors, q), v))


def input_slab_rc(x, dy, slab, begin, end, plan, coefs, dx, ahead, reach):
    """Write dx for one slab of x[r, q] and a range of columns; see `normalize_slab_rc`."""
    rows, columns = x.shape
    n0, n1, _, _ = slab_bounds(rows, 1, plan, slab)
    together = adjacent(x) and adjacent(dy) and adjacent(dx)
    run = maximum(1, n1 - n0) if together and end - begin == columns else 1
    size = run * (end - begin)
    streaming = streams_runs(plan, size * x.itemsize)
    for i in range(n0, n1, run):
        row, grad, out = row_at(x, (i,)), row_at(dy, (i,)), row_at(dx, (i,))
        input_run(row, grad, out, begin, size, coefs, streaming, ahead + reach)


input_slab = by_rank(input_slab_ncs, input_slab_rc)
