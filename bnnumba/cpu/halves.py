"""Parts of vectors, loaded and stored by halves: 8 elements, then 4, 2 and 1, or not.

A CPU foresees the branches where rows are alike. By a mask AMD before Zen 4 takes some twenty times
as long to store, and few CPUs can load or store elements of 16 bits (16 MB in rows of 20 columns of
32: float32 normalized in 4.5 ms against 10, backward of bfloat16 in 6.3 against 14.8).
"""

from llvmlite import ir

from .simd import I32, I64, emit_half, emit_joined


def _has(builder, live, count):
    """Return whether a number of lanes has the bit of a power of two of them."""
    return builder.icmp_unsigned("!=", builder.and_(live, I64(count)), I64(0))


def emit_load_halves(builder, stored, at, size, live):
    """Load the first `live` elements of a vector of a power of two of them, and zeros.

    As here, `at` points to the vector in `emit_store_halves`, and `size` is that of an element.
    """
    with builder.if_else(_has(builder, live, stored.count)) as (all_of_them, some):
        with all_of_them:
            whole, after_whole = builder.load(at, align=size), builder.block
        with some:
            at = builder.bitcast(at, stored.element.as_pointer())
            part = _emit_load_fewer(builder, stored, at, size, live)
            after_part = builder.block
    return _joining(builder, (whole, after_whole), (part, after_part))


def _emit_load_fewer(builder, stored, at, size, live):
    """Do `emit_load_halves` for fewer than all elements."""
    count = stored.count // 2
    here, zero = _has(builder, live, count), ir.Constant(stored, None)
    if count == 1:  # not as a vector of one, with which LLVM loaded the next one as well
        before = builder.block
        with builder.if_then(here):
            single = builder.insert_element(zero, builder.load(at, align=size), I32(0))
            inside = builder.block
        return _joining(builder, (zero, before), (single, inside))
    half = ir.VectorType(stored.element, count)
    none = ir.Constant(half, None)
    behind = builder.select(here, builder.gep(at, [I64(count)]), at)
    rest = _emit_load_fewer(builder, half, behind, size, live)
    with builder.if_else(here) as (first, second):
        with first:
            low = builder.load(builder.bitcast(at, half.as_pointer()), align=size)
            both, after_first = emit_joined(builder, low, rest), builder.block
        with second:
            padded, after_second = emit_joined(builder, rest, none), builder.block
    return _joining(builder, (both, after_first), (padded, after_second))


def _joining(builder, *ways):
    """Return the value that comes from one of some blocks."""
    phi = builder.phi(ways[0][0].type)
    for value, block in ways:
        phi.add_incoming(value, block)
    return phi


def emit_store_halves(builder, stored, at, size, live):
    """Store the first `live` elements of a vector of a power of two of them."""
    count = stored.type.count
    with builder.if_else(_has(builder, live, count)) as (all_of_them, some):
        with all_of_them:
            builder.store(stored, at, align=size)
        with some:
            at = builder.bitcast(at, stored.type.element.as_pointer())
            while count > 1:
                count //= 2
                low, before = emit_half(builder, stored, 0), builder.block
                with builder.if_then(_has(builder, live, count)):
                    first = builder.extract_element(low, I32(0)) if count == 1 else low
                    builder.store(first, builder.bitcast(at, first.type.as_pointer()), align=size)
                    high, behind = emit_half(builder, stored, count), builder.gep(at, [I64(count)])
                    inside = builder.block
                stored = _joining(builder, (low, before), (high, inside))
                at = _joining(builder, (at, before), (behind, inside))
