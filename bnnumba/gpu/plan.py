"""How a canonical view is cut into work: by its shape and by what the device is, once for each.

All thresholds stand here. They are what the arithmetic of caches and latencies suggests;
`benchmarks/gpu.py --plans` times the alternatives on a device.

Kernels of 64 to 96 registers leave a multiprocessor 640 to 1024 threads, whichever blocks they are
in. In small blocks some load while others add up, wait or write: with one block of 512 threads
nothing is on its way meanwhile, by an estimate half of the time where a thread has eight accesses.
"""

from functools import lru_cache
from typing import NamedTuple

__all__ = ["Plan", "Traits", "plan_merge", "plan_passes", "plan_sweeps", "widest"]

# Threads of a block: at least, at most, and where shared memory leaves room for one block only
# (`jit.MAX_THREADS`).
LEAST_THREADS, THREADS, MOST_THREADS = 64, 128, 512
# Accesses per thread that a block is made for, if that is not too large for it.
PER_THREAD = 8
# Blocks that a multiprocessor should have.
BLOCKS = 8
# Bytes of a row of x[r, c] that a block takes, a cache line, and the lanes that share them. Fewer,
# down to a sector of the cache, where all rows then fit into shared memory or the L2 cache.
LINE_BYTES = 128
SECTOR_BYTES = 32
LANES = 32
# Bytes that one block sweeps: long enough for its start not to show, and short in a kernel of two
# sweeps, as what all blocks work on at a time must stay in the L2 cache between them.
PASS_BYTES = 64 * 1024
SWEEP_BYTES = 16 * 1024
LEAST_JOB_BYTES = 8 * 1024
# The share of the L2 cache that a group of tiles may take between its sweeps: three groups are in
# work at a time, and what is written takes its part.
GROUP_SHARE = 8
# Tiles larger than this share of the L2 cache would leave it before they are read again.
TILE_SHARE = 4
# Partial results of a tile, merged by one block, for which second sweeps wait.
MOST_PARTS = 256


class Traits(NamedTuple):
    """What plans depend on."""

    capability: tuple[int, int]
    multiprocessors: int
    shared: int  # bytes of shared memory that a block may use
    l2: int  # bytes of L2 cache


class Plan(NamedTuple):
    """A launch: a grid of blocks and the integers that describe the cut."""

    lanes: int
    tiles: int
    threads: int
    parts: int
    chunk: int
    group: int  # tiles per group of a swept kernel; 0 for a resident one, and for plain passes
    scratch: int  # bytes of shared memory for the reductions
    shared: int  # all bytes of shared memory


def widest(itemsize, columns_contiguous, capability):
    """Return how many elements an access has at most."""
    # Eight channels per thread do not fit into the registers of what sm_80 compiles to.
    if columns_contiguous and capability < (9, 0):
        return max(1, 16 // max(itemsize, 4))
    return 16 // itemsize


def _power(number, least, most):
    """Return the power of two from `number` up, within bounds that are powers of two."""
    return max(least, min(most, 1 << max(0, int(number - 1).bit_length())))


def _scratch(threads, lanes, columns, real, warps):
    """Return the bytes that reductions need: moments of each channel for all threads or warps."""
    slots = (threads // 32 if warps else threads // lanes) * lanes
    return -(-slots * (3 * columns + 1) * real // 16) * 16


def _ceil(a, b):
    return -(-a // b)


def _threads(accesses, lanes, most):
    """Return how many threads a block has that makes so many accesses."""
    return max(_power(_ceil(accesses, PER_THREAD), LEAST_THREADS, most), lanes)


def _cut(groups, lanes, steps, columns, width, real, arrays, traits, warps, job_bytes, most_parts):
    """Return a plan of several parts a tile."""
    tiles = _ceil(groups, lanes)
    tile_bytes = steps * lanes * width * arrays
    share = tile_bytes * tiles // (BLOCKS * traits.multiprocessors)
    job = min(job_bytes, max(LEAST_JOB_BYTES, share))
    parts = max(1, min(most_parts, _ceil(tile_bytes, job)))
    chunk = _ceil(steps, parts)
    threads = _threads(chunk * lanes * arrays, lanes, THREADS)
    stride = 4 * threads // lanes  # whole rounds of four accesses per thread
    if chunk > stride:
        chunk = _ceil(chunk, stride) * stride
    parts = _ceil(steps, chunk)
    scratch = _scratch(threads, lanes, columns, real, warps)
    return Plan(lanes, tiles, threads, parts, chunk, 0, scratch, scratch)


def _lanes(groups, rows, width):
    return _power(min(groups, LINE_BYTES // width), 1, LANES) if rows else 1


def _narrower(lanes, width):
    """Return so many lanes, and half as many again and again, of a sector at least."""
    halves = [lanes >> i for i in range(lanes.bit_length())]
    return [few for few in halves if few == lanes or few * width >= SECTOR_BYTES]


@lru_cache(maxsize=4096)
def plan_passes(groups, steps, rows, columns, width, real, arrays, traits, warps=True):
    """Return the plan of a single sweep: any number of parts a tile.

    Parameters
    ----------
    groups : int
        Channels, over those of one access.
    steps : int
        Accesses per group.
    rows : bool
        Whether the view is x[r, c], an access to a row.
    columns : int
        Channels of one access.
    width : int
        Bytes of one access.
    real : int
        Bytes of a float that is computed with.
    arrays : int
        How many arrays are read.
    traits : Traits
        The device.
    warps : bool
        False in the simulator.
    """
    lanes = _lanes(groups, rows, width)
    cut = groups, lanes, steps, columns, width, real, arrays, traits, warps
    return _cut(*cut, PASS_BYTES, 1 << 30)


@lru_cache(maxsize=4096)
def plan_merge(parts, columns, real, warps=True):
    """Return the threads, and bytes of shared memory, of a block that merges a group's parts."""
    threads = _power(parts, LEAST_THREADS, MOST_THREADS)
    return threads, _scratch(threads, 1, columns, real, warps)


@lru_cache(maxsize=4096)
def plan_sweeps(groups, steps, rows, columns, width, real, arrays, traits, warps=True):
    """Return the plan of two sweeps in one launch, or None where two launches are better.

    Takes what `plan_passes` takes. A resident kernel is best where tiles fit into shared memory,
    unless there are too few of them to keep the device busy; next best is a group of tiles that
    fits into the L2 cache.
    """
    narrower = _narrower(_lanes(groups, rows, width), width)
    for lanes in narrower:
        tile_bytes = steps * lanes * width * arrays
        # As many tiles as fit into shared memory have the threads of one multiprocessor.
        fitting = max(1, traits.shared // tile_bytes)
        most_threads = max(THREADS, MOST_THREADS >> (fitting.bit_length() - 1))
        threads = _threads(steps * lanes * arrays, lanes, most_threads)
        scratch = _scratch(threads, lanes, columns, real, warps)
        per_thread = _ceil(steps, threads // lanes)
        shared = scratch + per_thread * threads * width * arrays
        tiles = _ceil(groups, lanes)
        busy = tiles >= traits.multiprocessors // 2 or tile_bytes <= 2 * LEAST_JOB_BYTES
        if shared <= traits.shared and busy:
            return Plan(lanes, tiles, threads, 1, steps, 0, scratch, shared)
    for lanes in narrower:
        tile_bytes = steps * lanes * width * arrays
        if tile_bytes <= traits.l2 // TILE_SHARE:
            cut = groups, lanes, steps, columns, width, real, arrays, traits, warps
            plan = _cut(*cut, SWEEP_BYTES, MOST_PARTS)
            group = max(1, min(plan.tiles, traits.l2 // GROUP_SHARE // tile_bytes))
            return plan._replace(group=group)
    return None
