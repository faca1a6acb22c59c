"""How a canonical array is cut into work, by its shape alone.

A channel's values are cut into *chunks*, short enough to sum in one go; consecutive chunks make a
*slab*. Chunks are merged in order within their slab, then slabs in order. The cut, and so every
rounding, depends on the shape only; how slabs and channels are dealt out to threads does not
matter to the result.
"""

from .jit import kernel

# Values of one channel summed against one pivot: short enough for rounding to stay below 1e-13
# of the variance, long enough for the work at a chunk's end not to show.
CHUNK = 16384
# Rows of a chunk in the rc view, whose accumulators go through memory at the chunk's end.
CHUNK_ROWS = 512
# Slabs per channel at most: enough for the threads of a large machine when there is one channel,
# few enough for the partial results to stay small.
SLABS = 64


def plan_ncs(n, s):
    """Return ``(rows, columns, chunks_per_slab, slabs)`` for a view x[n, c, s]."""
    columns = min(s, CHUNK)
    rows = min(n, max(1, CHUNK // s))
    chunks = -(-n // rows) * -(-s // columns)
    per_slab = -(-chunks // SLABS)
    return rows, columns, per_slab, -(-chunks // per_slab)


def plan_rc(r):
    """Return ``(rows, 1, chunks_per_slab, slabs)`` for a view x[r, c]."""
    rows = min(r, CHUNK_ROWS)
    chunks = -(-r // rows)
    per_slab = -(-chunks // SLABS)
    return rows, 1, per_slab, -(-chunks // per_slab)


@kernel
def chunk_bounds(n, s, plan, chunk):
    """Return ``(n0, n1, s0, s1)`` of one chunk of a view x[n, c, s]; for x[r, c], s is 1."""
    rows, columns = plan[0], plan[1]
    across = (s + columns - 1) // columns
    n0 = chunk // across * rows
    s0 = chunk % across * columns
    return n0, min(n, n0 + rows), s0, min(s, s0 + columns)


@kernel
def slab_chunks(n, s, plan, slab):
    """Return the half-open range of chunks that make one slab."""
    rows, columns, per_slab = plan[0], plan[1], plan[2]
    chunks = ((n + rows - 1) // rows) * ((s + columns - 1) // columns)
    return slab * per_slab, min(chunks, (slab + 1) * per_slab)
