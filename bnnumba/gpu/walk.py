"""How a thread walks through a canonical view.

The accesses of a tile are numbered: row after row, `sv` to a row of x[n, c, s], and one to a row of
x[r, c], where channels are contiguous. Offsets are in elements, 64 bits wide.
"""

from .jit import inlined
from .simd import quotient

__all__ = ["build"]


def build(count, columns):
    """Return the functions ``advance, strides, start, place`` for accesses of `count` elements."""
    rows = columns > 1  # each access is a row, and nothing wraps

    @inlined
    def strides(step, sv, a, b, c):
        """Return how far one step goes in the row and in three arrays of the given row strides."""
        dn = step if rows else quotient(step, sv)
        dv = step - dn * sv
        ahead = 0 if rows else dv * count
        back = sv * count
        return (
            dv, sv, dn * a + ahead, a - back, dn * b + ahead, b - back, dn * c + ahead, c - back,
        )  # fmt: skip

    @inlined
    def start(q, sv, c, n_stride, c_stride):
        """Return the offset of access q of channel c."""
        if rows:
            return q * n_stride + c
        n = quotient(q, sv)
        return n * n_stride + c * c_stride + (q - n * sv) * count

    @inlined
    def place(q, sv):
        """Return the place of access q in its row."""
        return 0 if rows else q - quotient(q, sv) * sv

    @inlined
    def advance(a, b, c, v, stride):
        """Return the next offsets in three arrays, and the place in the row."""
        dv, sv, a_step, a_wrap, b_step, b_wrap, c_step, c_wrap = stride
        a, b, c = a + a_step, b + b_step, c + c_step
        if not rows:
            v += dv
            if v >= sv:
                a, b, c, v = a + a_wrap, b + b_wrap, c + c_wrap, v - sv
        return a, b, c, v

    return advance, strides, start, place
