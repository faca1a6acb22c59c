"""The kernels: what one launch does, made of the device functions of each step.

Both canonical views are walked alike. A *tile* is what a block of threads works on: one channel of
x[n, c, s], whose accesses are numbered row after row, or `lanes` neighbouring groups of channels of
x[r, c], one access a row. Its `steps` accesses are cut into `parts` of `chunk` steps by `plan`.
Arguments are addresses, extents and strides (in elements); 0 is the address of what is not there.

A *resident* kernel keeps its tile in shared memory between the two sweeps. A *swept* kernel goes
over groups of tiles small enough for the L2 cache, so that the second sweep reads them from there:
blocks draw tickets, in the order sweep 1 of group 0, sweep 1 of group 1, sweep 2 of group 0, sweep
1 of group 2, ... The block that is the last to report a part of a tile merges the partial results
of all parts, and blocks that sweep the tile a second time wait for that. The parts have earlier
tickets, and their blocks wait for nothing, so that this ends whatever else the device does and in
whatever order blocks start.
"""

from types import SimpleNamespace

from . import backward, moments, normalize, walk
from .jit import SIMULATED, Kernel, block, inlined, sync, thread, threads
from .moments import mean_of
from .simd import atomic_add, counted, drawn, exponent, pause, quotient

if SIMULATED:
    from .simulator import machine
else:
    from .memory import machine

__all__ = ["build"]


@inlined
def sweep_of(ticket, tiles, parts, group):
    """Return ``second, tile, part`` of a ticket, the second sweep going backwards."""
    jobs = group * parts
    turn = quotient(ticket, jobs)
    job = ticket - turn * jobs
    last = quotient(tiles + group - 1, group) - 1
    second = turn == 2 * last + 1 or (turn > 0 and turn & 1 == 0)
    which = (turn + 1) >> 1
    if second:
        which = last if turn == 2 * last + 1 else (turn >> 1) - 1
        job = jobs - 1 - job
    part = quotient(job, group)
    return second, which * group + job - part * group, part


@inlined
def piece_of(job, tiles):
    """Return ``tile, part`` of a block of a single sweep."""
    part = quotient(job, tiles)
    return job - part * tiles, part


def build(kind, count, columns, parameter):
    """Return the kernels for a dtype of data, elements per access and a dtype of parameters.

    `columns` is `count` where channels are contiguous, and 1 where rows of one channel are.
    """
    m = machine(kind, count, columns, parameter)
    m.advance, strides, start, place = walk.build(count, columns)
    real = m.real
    zero_row, read = m.zero_row, m.read
    read_param, take_ticket, leave_ticket = m.read_param, m.take_ticket, m.leave_ticket
    width = count * m.size
    # The functions of each step, on data from global memory and from shared memory.
    f, kept = moments.build(m, False), moments.build(m, True)
    collect, collect_kept, join_block = f.collect, kept.collect, f.join_block
    write_moments, merge_moment_parts = f.write_partial, f.merge_partials
    inverse_std, write_stats = f.inverse_std, f.write_stats
    f, kept = normalize.build(m, False), normalize.build(m, True)
    normalized, normalized_kept = f.normalize, kept.normalize
    coefficients, update_running = f.coefficients, f.update_running
    f, kept = backward.build(m, False), backward.build(m, True)
    reduce, reduce_kept, add_block = f.reduce, kept.reduce, f.add_block
    differentiate, differentiate_kept = f.differentiate, kept.differentiate
    write_sums, read_sums, merge_sum_parts = f.write_partial, f.read_partial, f.merge_partials
    slopes, write_gradients = f.coefficients, f.write_gradients

    @inlined
    def begin(tile, part, chunk, steps, channels, lanes):
        """Return a thread's first channel, its first step, the end, and from step to step."""
        t, shift = thread(), exponent(lanes)
        c = (tile * lanes + (t & (lanes - 1))) * columns
        q = part * chunk + (t >> shift)
        end = min(steps, (part + 1) * chunk) if c < channels else 0
        return c, q, end, threads() >> shift

    @inlined
    def shown(number):
        """Return to all threads of the block what its first one has."""
        if thread() == 0:
            leave_ticket(number)
        sync()
        ticket = take_ticket()
        sync()
        return ticket

    @inlined
    def draw(work):
        """Return a ticket for this block: how many were drawn before."""
        ticket = 0
        if thread() == 0:
            ticket = drawn(work, 0)
        return shown(ticket)

    @inlined
    def report(work, tile):
        """Count something as done for a tile, all that this block wrote; return how much was.

        These are its parts, and in the end that they are merged.
        """
        sync()
        done = 0
        if thread() == 0:
            done = atomic_add(work, 1 + tile, 1)
        return shown(done)

    @inlined
    def wait(work, tile, parts):
        """Wait until all parts of a tile are merged."""
        if thread() == 0:
            # Looked at without an order, which costs other blocks nothing; then in order, once.
            while counted(work, 1 + tile) <= parts:
                pause()
            atomic_add(work, 1 + tile, 0)
        sync()

    def forward_resident(
        x, y, weight, bias, stats, running_mean, running_var, channels, steps, sv, xn, xc, yn, yc,
        lanes, scratch, size, eps, momentum, divisor,
    ):  # fmt: skip
        c, q, end, step = begin(block(), 0, steps, steps, channels, lanes)
        stride = strides(step, sv, xn, yn, 0)
        o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, yn, yc), place(q, sv)
        slot, slot_step = scratch + thread() * width, threads() * width
        k, r, m2, n = collect_kept(x, o, v, q, end, step, stride, slot, slot_step)
        k, r, m2 = join_block(k, r, m2, n, lanes)
        if c < channels:
            invstd = inverse_std(m2, size, eps)
            center, rest = mean_of(k, r)
            scale, shift = coefficients(rest, invstd, weight, bias, c)
            if thread() < lanes:
                write_stats(stats, channels, c, center, rest, m2, invstd)
                update_running(running_mean, running_var, c, center, rest, m2, momentum, divisor)
            normalized_kept(
                x, y, o, p, v, q, end, step, stride, slot, slot_step, center, scale, shift
            )

    def forward_swept(
        x, y, weight, bias, stats, running_mean, running_var, work, partials, channels, steps, sv,
        xn, xc, yn, yc, lanes, tiles, parts, chunk, group, size, eps, momentum, divisor,
    ):  # fmt: skip
        second, tile, part = sweep_of(draw(work), tiles, parts, group)
        if tile < tiles:
            c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
            stride = strides(step, sv, xn, yn, 0)
            o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, yn, yc), place(q, sv)
            if second:
                wait(work, tile, parts)
                if c < channels:
                    center, rest = read(stats, c), read(stats, channels + c)
                    invstd = read(stats, 3 * channels + c)
                    scale, shift = coefficients(rest, invstd, weight, bias, c)
                    normalized(x, y, o, p, v, q, end, step, stride, 0, 0, center, scale, shift)
            else:
                k, r, m2, n = collect(x, o, v, q, end, step, stride, 0, 0)
                k, r, m2 = join_block(k, r, m2, n, lanes)
                if thread() < lanes:
                    write_moments(partials, tile * parts + part, lanes, k, r, m2)
                if report(work, tile) == parts - 1:
                    first, lane = tile * parts, thread() & (lanes - 1)
                    k, r, m2 = merge_moment_parts(
                        partials, first, parts, chunk, steps, lanes, lane, lanes
                    )
                    if thread() < lanes and c < channels:
                        center, rest = mean_of(k, r)
                        write_stats(
                            stats, channels, c, center, rest, m2, inverse_std(m2, size, eps)
                        )
                        update_running(
                            running_mean, running_var, c, center, rest, m2, momentum, divisor
                        )
                    report(work, tile)

    def collect_moments(
        x, stats, partials, channels, steps, sv, xn, xc, lanes, tiles, parts, chunk, size, eps
    ):
        tile, part = piece_of(block(), tiles)
        c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
        stride = strides(step, sv, xn, 0, 0)
        o, v = start(q, sv, c, xn, xc), place(q, sv)
        k, r, m2, n = collect(x, o, v, q, end, step, stride, 0, 0)
        k, r, m2 = join_block(k, r, m2, n, lanes)
        if thread() < lanes:
            if parts > 1:
                write_moments(partials, tile * parts + part, lanes, k, r, m2)
            elif c < channels:
                center, rest = mean_of(k, r)
                write_stats(stats, channels, c, center, rest, m2, inverse_std(m2, size, eps))

    def merge_moments(stats, partials, channels, steps, lanes, parts, chunk, size, eps):
        tile, lane = block() >> exponent(lanes), block() & (lanes - 1)
        c, first = block() * columns, tile * parts
        k, r, m2 = merge_moment_parts(partials, first, parts, chunk, steps, lanes, lane, 1)
        if thread() == 0:
            center, rest = mean_of(k, r)
            write_stats(stats, channels, c, center, rest, m2, inverse_std(m2, size, eps))

    def apply(
        x, y, weight, bias, mean, rest, invstd, channels, steps, sv, xn, xc, yn, yc, lanes, tiles,
        chunk,
    ):  # fmt: skip
        tile, part = piece_of(block(), tiles)
        c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
        if c < channels:
            center, left = zero_row(), zero_row()
            if mean != 0:
                center, left = read(mean, c), read(rest, c)
            scale, shift = coefficients(left, read(invstd, c), weight, bias, c)
            stride = strides(step, sv, xn, yn, 0)
            o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, yn, yc), place(q, sv)
            normalized(x, y, o, p, v, q, end, step, stride, 0, 0, center, scale, shift)

    def infer(
        x, y, weight, bias, mean, var, channels, steps, sv, xn, xc, yn, yc, lanes, tiles, chunk, eps
    ):
        tile, part = piece_of(block(), tiles)
        c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
        if c < channels:
            center = read_param(mean, c)
            invstd = inverse_std(read_param(var, c), real(1), eps)
            scale, shift = coefficients(zero_row(), invstd, weight, bias, c)
            stride = strides(step, sv, xn, yn, 0)
            o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, yn, yc), place(q, sv)
            normalized(x, y, o, p, v, q, end, step, stride, 0, 0, center, scale, shift)

    def backward_resident(
        x, dy, dx, weight, stats, dweight, dbias, channels, steps, sv, xn, xc, gn, gc, dn, dc,
        lanes, scratch, size,
    ):  # fmt: skip
        c, q, end, step = begin(block(), 0, steps, steps, channels, lanes)
        stride = strides(step, sv, xn, gn, dn)
        o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, gn, gc), place(q, sv)
        slot, slot_step = scratch + thread() * width, threads() * width
        center, rest = zero_row(), zero_row()
        if c < channels:
            center, rest = read(stats, c), read(stats, channels + c)
        total, product = reduce_kept(
            x, dy, center, rest, o, p, v, q, end, step, stride, slot, slot_step
        )
        total, product = add_block(total, product, lanes)
        if c < channels:
            invstd = read(stats, 3 * channels + c)
            a, b, shift = slopes(total, product, size, rest, invstd, weight, c)
            if thread() < lanes:
                write_gradients(0, dweight, dbias, channels, c, total, product, invstd)
            differentiate_kept(
                x, dy, dx, o, p, start(q, sv, c, dn, dc), v, q, end, step, stride, slot, slot_step,
                center, a, b, shift,
            )  # fmt: skip

    def backward_swept(
        x, dy, dx, weight, stats, dweight, dbias, work, partials, channels, steps, sv, xn, xc, gn,
        gc, dn, dc, lanes, tiles, parts, chunk, group, size,
    ):  # fmt: skip
        second, tile, part = sweep_of(draw(work), tiles, parts, group)
        if tile < tiles:
            c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
            stride = strides(step, sv, xn, gn, dn)
            o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, gn, gc), place(q, sv)
            center, rest = zero_row(), zero_row()
            if c < channels:
                center, rest = read(stats, c), read(stats, channels + c)
            if second:
                wait(work, tile, parts)
                if c < channels:
                    lane = thread() & (lanes - 1)
                    total, product = read_sums(partials, tile * parts, lanes, lane)
                    invstd = read(stats, 3 * channels + c)
                    a, b, shift = slopes(total, product, size, rest, invstd, weight, c)
                    differentiate(
                        x, dy, dx, o, p, start(q, sv, c, dn, dc), v, q, end, step, stride, 0, 0,
                        center, a, b, shift,
                    )  # fmt: skip
            else:
                total, product = reduce(x, dy, center, rest, o, p, v, q, end, step, stride, 0, 0)
                total, product = add_block(total, product, lanes)
                if thread() < lanes:
                    write_sums(partials, tile * parts + part, lanes, total, product)
                if report(work, tile) == parts - 1:
                    lane = thread() & (lanes - 1)
                    total, product = merge_sum_parts(
                        partials, tile * parts, parts, lanes, lane, lanes
                    )
                    if thread() < lanes and c < channels:
                        invstd = read(stats, 3 * channels + c)
                        write_gradients(0, dweight, dbias, channels, c, total, product, invstd)
                        write_sums(partials, tile * parts, lanes, total, product)
                    report(work, tile)

    def backward_reduce(
        x, dy, stats, sums, dweight, dbias, partials, channels, steps, sv, xn, xc, gn, gc, lanes,
        tiles, parts, chunk,
    ):  # fmt: skip
        tile, part = piece_of(block(), tiles)
        c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
        stride = strides(step, sv, xn, gn, 0)
        o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, gn, gc), place(q, sv)
        center, rest, invstd = zero_row(), zero_row(), zero_row()
        if c < channels:
            center, rest = read(stats, c), read(stats, channels + c)
            invstd = read(stats, 3 * channels + c)
        total, product = reduce(x, dy, center, rest, o, p, v, q, end, step, stride, 0, 0)
        total, product = add_block(total, product, lanes)
        if thread() < lanes:
            if parts > 1:
                write_sums(partials, tile * parts + part, lanes, total, product)
            elif c < channels:
                write_gradients(sums, dweight, dbias, channels, c, total, product, invstd)

    def merge_sums(stats, sums, dweight, dbias, partials, channels, lanes, parts):
        tile, lane = block() >> exponent(lanes), block() & (lanes - 1)
        c = block() * columns
        total, product = merge_sum_parts(partials, tile * parts, parts, lanes, lane, 1)
        if thread() == 0:
            invstd = read(stats, 3 * channels + c)
            write_gradients(sums, dweight, dbias, channels, c, total, product, invstd)

    def backward_input(
        x, dy, dx, weight, stats, sums, channels, steps, sv, xn, xc, gn, gc, dn, dc, lanes, tiles,
        chunk, size,
    ):  # fmt: skip
        tile, part = piece_of(block(), tiles)
        c, q, end, step = begin(tile, part, chunk, steps, channels, lanes)
        if c < channels:
            center, rest = read(stats, c), read(stats, channels + c)
            invstd = read(stats, 3 * channels + c)
            total, product = read(sums, c), read(sums, channels + c)
            a, b, shift = slopes(total, product, size, rest, invstd, weight, c)
            stride = strides(step, sv, xn, gn, dn)
            o, p, v = start(q, sv, c, xn, xc), start(q, sv, c, gn, gc), place(q, sv)
            differentiate(
                x, dy, dx, o, p, start(q, sv, c, dn, dc), v, q, end, step, stride, 0, 0, center, a,
                b, shift,
            )  # fmt: skip

    def constant_stats(mean, var, stats, channels, eps):
        c = (block() * threads() + thread()) * columns
        if c < channels:
            invstd = inverse_std(read_param(var, c), real(1), eps)
            write_stats(stats, channels, c, read_param(mean, c), zero_row(), zero_row(), invstd)

    def move_running(running_mean, running_var, stats, channels, momentum, divisor):
        c = (block() * threads() + thread()) * columns
        if c < channels:
            center, rest = read(stats, c), read(stats, channels + c)
            m2 = read(stats, 2 * channels + c)
            update_running(running_mean, running_var, c, center, rest, m2, momentum, divisor)

    # Each with how many of its arguments are floats.
    bodies = {
        forward_resident: 4, forward_swept: 4, collect_moments: 2, merge_moments: 2, apply: 0,
        infer: 1, backward_resident: 1, backward_swept: 1, backward_reduce: 0, merge_sums: 0,
        backward_input: 1, constant_stats: 1, move_running: 2,
    }  # fmt: skip
    double = kind == "float64"
    variant = kind, count, columns, parameter
    return SimpleNamespace(
        **{f.__name__: Kernel(f, reals, double, variant) for f, reals in bodies.items()}
    )
