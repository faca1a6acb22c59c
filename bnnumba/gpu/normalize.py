"""Device functions that normalize: y = (x - center) * scale + shift.

`center` is the mean rounded to the precision of the arithmetic, and `shift` makes up for the rest:

    scale = weight / sqrt(var + eps),    shift = bias - rest * scale
"""

from types import SimpleNamespace

from .jit import inlined
from .simd import fma, like

__all__ = ["build"]


def build(m, kept_data):
    """Return the functions that normalize; `kept_data` says whether x stands in shared memory."""
    fetch, put, widen, narrow, kept, spread = m.fetch, m.put, m.widen, m.narrow, m.kept, m.spread
    advance, zero_row = m.advance, m.zero_row
    read_param, write_param = m.read_param, m.write_param

    @inlined
    def coefficients(rest, invstd, weight, bias, c):
        """Return scale and shift of a thread's channels; a null weight or bias stands for none."""
        scale = invstd
        if weight != 0:
            scale = scale * read_param(weight, c)
        shift = zero_row() - rest * scale
        if bias != 0:
            shift = shift + read_param(bias, c)
        return scale, shift

    @inlined
    def update_running(running_mean, running_var, c, center, rest, m2, momentum, divisor):
        """Move running statistics, where they are not null, towards those of the batch."""
        if running_mean != 0:
            old = read_param(running_mean, c)
            share = like(old, momentum)
            kept = (like(old, 1.0) - share) * old
            write_param(running_mean, c, kept + share * (center + rest))
        if running_var != 0:
            old = read_param(running_var, c)
            share = like(old, momentum)
            kept = (like(old, 1.0) - share) * old
            write_param(running_var, c, kept + share * (m2 / like(old, divisor)))

    @inlined
    def source(x, o, slot):
        """Return x as a vector, from shared memory if it is kept there."""
        return widen(kept(slot)) if kept_data else widen(fetch(x, o))

    @inlined
    def normalize(x, y, o, p, v, q, end, step, stride, slot, slot_step, center, scale, shift):
        """Write every `step`-th access of y from q to `end`."""
        center, scale, shift = spread(center), spread(scale), spread(shift)
        while q + 3 * step < end:
            o1, p1, _, v = advance(o, p, 0, v, stride)
            o2, p2, _, v = advance(o1, p1, 0, v, stride)
            o3, p3, _, v = advance(o2, p2, 0, v, stride)
            x0, x1 = source(x, o, slot), source(x, o1, slot + slot_step)
            x2, x3 = source(x, o2, slot + 2 * slot_step), source(x, o3, slot + 3 * slot_step)
            put(y, p, narrow(fma(x0 - center, scale, shift)))
            put(y, p1, narrow(fma(x1 - center, scale, shift)))
            put(y, p2, narrow(fma(x2 - center, scale, shift)))
            put(y, p3, narrow(fma(x3 - center, scale, shift)))
            o, p, _, v = advance(o3, p3, 0, v, stride)
            slot += 4 * slot_step
            q += 4 * step
        while q < end:
            put(y, p, narrow(fma(source(x, o, slot) - center, scale, shift)))
            o, p, _, v = advance(o, p, 0, v, stride)
            slot += slot_step
            q += step

    return SimpleNamespace(
        coefficients=coefficients, update_running=update_running, normalize=normalize,
    )  # fmt: skip
