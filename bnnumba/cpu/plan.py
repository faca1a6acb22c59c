"""How a canonical array is cut into work, by its shape alone.

The (n, s) rectangle of a channel is cut into a grid of *slabs*, and each slab into *chunks* short
enough to sum in one go. Chunks are merged in order within their slab, then slabs in order. The
cut, and so every rounding, depends on the shape only; how slabs and channels are dealt out to
threads does not matter to the result. A step that only writes rounds each value by itself and may
be cut in any way. A view x[r, q] counts as n = r, with the s values of each channel in a row, and
where nothing is added up, as n = r, s = 1, each column for itself.
"""

from functools import lru_cache
from typing import NamedTuple

from .integers import minimum
from .jit import inlined
from .sums import NARROW

# Values of one channel summed against one pivot: short enough for rounding to stay below 1e-13
# of the variance, long enough for the work at a chunk's end not to show.
CHUNK = 16384
# Rows of a chunk in the rc view at most, whose accumulators go through memory at the chunk's end.
CHUNK_ROWS = 2048
# Slabs at most: enough for the threads of a large machine when there is one channel, few enough
# for the partial results to stay small.
SLABS = 64
# Values of one channel, and rows in the rc view, that are worth a slab.
SLAB = 8192
SLAB_ROWS = 256


class Plan(NamedTuple):
    """How a step is done: the cut, which is the first six, and what `bnnumba.cpu.choices` adds.

    Pieces are as even as they can be, so that threads have the same to do.
    """

    slabs: int
    across: int  # how many of them stand side by side
    slab_rows: int
    slab_columns: int
    chunk_rows: int
    chunk_columns: int
    block: int  # channels of a work item, or columns of one that only writes
    ahead: int  # of them, from what is written to what is fetched meanwhile
    streaming: int  # whether the output is written past the caches


def _ceil_div(a, b):
    return -(-a // b)


def even(items, size, total, workers):
    """Return whether no worker has more to do than a thirtieth above its share of the total.

    All items but the last are of one size, and each worker does as many of them.
    """
    return 30 * workers * _ceil_div(items, workers) * size <= 31 * total


def _columns(s, pieces):
    """Return how many columns a piece has: all, or as many as end at a cache line."""
    return min(s, _ceil_div(_ceil_div(s, pieces), 64) * 64)


@lru_cache(maxsize=4096)
def cut_ncs(n, s):
    """Return the cut of a view x[n, c, s] with n, s > 0."""
    slabs = max(1, min(SLABS, n * s // SLAB))
    slab_rows = _ceil_div(n, min(n, slabs))
    down = _ceil_div(n, slab_rows)
    slab_columns = _columns(s, max(1, slabs // down))
    across = _ceil_div(s, slab_columns)
    chunk_columns = _columns(slab_columns, _ceil_div(slab_columns, CHUNK))
    chunk_rows = _ceil_div(slab_rows, _ceil_div(slab_rows, CHUNK // chunk_columns))
    return down * across, across, slab_rows, slab_columns, chunk_rows, chunk_columns


@lru_cache(maxsize=4096)
def cut_rc(r, s, columns):
    """Return the cut of a view of r > 0 rows of some columns, s of each channel.

    The number of slabs is 1, 2, 4, or a multiple of 8, which most numbers of threads share evenly:
    else blocks of channels would have to be narrow.
    """
    slabs = max(1, min(SLABS, r // SLAB_ROWS))
    for part in (8, 4, 2):
        if slabs >= part:
            slabs -= slabs % part
            break
    slab_rows = _ceil_div(r, slabs)
    most = max(1, CHUNK // s if columns < NARROW else min(CHUNK_ROWS, CHUNK // s))
    chunk_rows = _ceil_div(slab_rows, _ceil_div(slab_rows, most))
    return _ceil_div(r, slab_rows), 1, slab_rows, s, chunk_rows, s


def even_rows(n, together, workers):
    """Return how many of n rows a slab has, that all threads have the same to do.

    It is a multiple of the rows that are taken together, and an eighth of a thread's or more. With
    the last slab much shorter than the others, blocks of channels would have to make up for it:
    67 MB of 65537 rows of 256 channels were normalized in 4.6 ms in blocks of 128, so in 2.1.
    """
    for share in range(8, 0, -1):
        rows = min(n, _ceil_div(_ceil_div(n, share * workers), together) * together)
        if even(_ceil_div(n, rows), rows, n, workers):
            return rows
    return min(n, _ceil_div(_ceil_div(n, 8 * workers), together) * together)


def cut_writes(n, channels, s, together, workers):
    """Return the cut of a step that adds nothing up, so that its cut may suit the threads.

    A slab is some whole rows x[n], and a part of one only where there are too few of them, and of
    channels, for all threads.
    """
    if workers == 1:
        return 1, 1, n, s, n, s
    rows = even_rows(n, together, workers)
    columns = _columns(s, _ceil_div(8 * workers, n * channels))
    across = _ceil_div(s, columns)
    return _ceil_div(n, rows) * across, across, rows, columns, rows, columns


@inlined
def slab_bounds(n, s, plan, slab):
    """Return ``(n0, n1, s0, s1)`` of one slab."""
    n0 = slab // plan.across * plan.slab_rows
    s0 = slab % plan.across * plan.slab_columns
    return n0, minimum(n, n0 + plan.slab_rows), s0, minimum(s, s0 + plan.slab_columns)
