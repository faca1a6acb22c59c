"""Kernels that copy between arrays of any strides, for those that no kernel takes as they are."""

from types import SimpleNamespace

from .jit import SIMULATED, Kernel, block, inlined, thread, threads

if SIMULATED:
    from .simulator import machine
else:
    from .memory import machine

__all__ = ["DIMENSIONS", "build", "merged"]

# Dimensions that a launch goes through.
DIMENSIONS = 6


@inlined
def split(i, extent, a, b, a_stride, b_stride):
    """Take the innermost of the remaining indices out of i."""
    rest = i // extent
    index = i - rest * extent
    return rest, a + index * a_stride, b + index * b_stride


def merged(shape, a_strides, b_strides):
    """Return ``(extent, stride, stride)`` of each dimension, the innermost first.

    Those that lie behind each other are one; there are `DIMENSIONS` at least.
    """
    found = []
    for extent, a, b in sorted(
        zip(shape, a_strides, b_strides, strict=True), key=lambda d: (abs(d[2]), abs(d[1]))
    ):
        if extent == 1:
            continue
        if found and a == found[-1][1] * found[-1][0] and b == found[-1][2] * found[-1][0]:
            found[-1] = (found[-1][0] * extent, found[-1][1], found[-1][2])
        else:
            found.append((extent, a, b))
    return found + [(1, 0, 0)] * (DIMENSIONS - len(found))


def build(kind, parameter):
    """Return the kernel that copies data of a dtype, and the one that converts it on the way."""
    m = machine(kind, 1, 1, parameter)
    fetch, put, widen, write_param = m.fetch, m.put, m.widen, m.write_param

    @inlined
    def offsets(i, e0, e1, e2, e3, e4, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5):
        """Return the offsets of element number i in both arrays."""
        i, a, b = split(i, e0, 0, 0, a0, b0)
        i, a, b = split(i, e1, a, b, a1, b1)
        i, a, b = split(i, e2, a, b, a2, b2)
        i, a, b = split(i, e3, a, b, a3, b3)
        i, a, b = split(i, e4, a, b, a4, b4)
        return a + i * a5, b + i * b5

    def copy(
        source, target, size, e0, e1, e2, e3, e4, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5
    ):
        i = block() * threads() + thread()
        if i < size:
            a, b = offsets(
                i, e0, e1, e2, e3, e4, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5
            )  # fmt: skip
            put(target, b, fetch(source, a))

    def convert(
        source, target, size, e0, e1, e2, e3, e4, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5
    ):
        i = block() * threads() + thread()
        if i < size:
            a, b = offsets(
                i, e0, e1, e2, e3, e4, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5
            )  # fmt: skip
            write_param(target, b, widen(fetch(source, a)))

    variant = kind, parameter
    return SimpleNamespace(
        copy=Kernel(copy, 0, False, variant), convert=Kernel(convert, 0, False, variant)
    )
