"""What is chosen for a step by the size of its arrays, and the caches and threads of the machine.

That is how many channels a work item has, and so whether both sweeps over it are one step; and
whether the output is written past the caches. Results do not depend on it, but the cut
(`bnnumba.cpu.plan`), which is by the shape alone, goes with it.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import caches, threads
from .normalize import WIDE
from .plan import Plan, cut_ncs, cut_rc, cut_writes, even
from .prefetching import PREFETCHED
from .sums import NARROW

# Below this many elements, starting the threads costs what they save. With as many, two threads
# took a fifth less time.
PARALLEL_SIZE = 131072
# The same for threads that sleep between calls (moments of 0.25 million elements: 60 us alone, with
# them 260 to 710, on a virtual machine that takes 100 us to wake a thread and be woken by it).
SLEEPERS_SIZE = 524288
# Columns per block at most, channels in the ncs view: their accumulators must stay close, in the
# ncs view three vectors of eight in L1, in the rc view five numbers in L2. Wide rows are read in
# longer runs (moments of 134 MB of 4096 channels: 4.6 ms, in blocks of 2048 channels 4.8), up to a
# point (67 MB of 16384 channels: training 0.96 and moments 0.97 of the time of whole rows).
BLOCK_NCS, BLOCK_RC = 64, 8192
# Bytes of a run of memory in the rc view, in the cache, that are enough for a fused step (128 rows
# of 4096 channels: a fifth to a quarter less).
SHORT_RUN = 2048
# What a step is: two sweeps over each block of channels; sums over slabs, for its next step; or one
# that needs no sum, for which rows of any number of channels are one run, each column a channel.
FUSED, SUMS, WRITES = 0, 1, 2


def cut(x, channels, kind, workers):
    """Return the cut of a step, which is the beginning of its `Plan`."""
    n = x.shape[0]
    s = x.size // (n * channels)
    if kind == WRITES:
        together = 2 if x.ndim == 2 and channels > WIDE else 1
        return cut_writes(n, channels, s, together, workers)
    return cut_ncs(n, s) if x.ndim == 3 else cut_rc(n, s, x.shape[1])


def fused_block(x, channels, inputs, workers, here):
    """Return how many channels a fused step takes at a time, or 0 if it is better not fused.

    They have `here.block` bytes, or up to `here.spill` where their run of memory in each row would
    else be short. If it is short even so, by an eighth, two steps are faster, which go through
    memory in order (50 MB of 64 channels in runs of 1600 bytes: 1.7 ms against 5.2, 15 MB of 32
    channels in runs of 6400 bytes: 290 us against 360). So they are where they can leave in the
    cache what a fused step would write past it (13 MB: an eighth to a fifth less).
    """
    s = x.size // (x.shape[0] * channels)
    most = BLOCK_NCS if x.ndim == 3 else max(1, BLOCK_RC // s)
    if x.size < PARALLEL_SIZE:
        return min(channels, most)
    if workers > 1 and channels < 2 * workers:
        return 0
    in_cache = not streams(x, FUSED, inputs, here)
    if not in_cache and not streams(x, WRITES, inputs, here):
        return 0
    channel_bytes = x.size // channels * x.itemsize * inputs
    long_run = -(-PREFETCHED // (s * x.itemsize))
    block = max(here.block // channel_bytes, min(long_run, here.spill // channel_bytes))
    block = max(1, min(block, most, channels // (4 * workers)))
    while block > 1 and not even(-(-channels // block), block, channels, workers):
        block -= 1
    shortest = SHORT_RUN if in_cache and x.ndim == 2 else PREFETCHED // 8 * 7
    return block if block * s * x.itemsize >= shortest else 0


def split_block(x, channels, kind, slabs, workers):
    """Return how many channels a step takes at a time that is cut into slabs as well."""
    # Rows of few columns are taken together, which must not depend on the number of threads.
    if x.ndim == 2 and kind == SUMS and x.shape[1] < NARROW:
        return channels
    most = BLOCK_NCS if x.ndim == 3 else max(1, BLOCK_RC // (x.shape[1] // channels))
    blocks = 1 if kind == WRITES else -(-channels // most)
    block = -(-channels // blocks)
    # Narrow blocks are read piecemeal, so that there are only as many as the threads can share.
    while block > 1 and not even(slabs * blocks, block, slabs * channels, workers):
        blocks += 1
        block = -(-channels // blocks)
    return block


def streams(x, kind, inputs, here):
    """Return whether to write an output past the caches: it does not fit into them with the inputs.

    Written there, the lines that are about to be overwritten need not be read first.
    """
    limit = here.swept if kind == FUSED else here.shared
    return (inputs + 1) * x.size * x.itemsize > limit


class Extents(NamedTuple):
    """What a choice is made by, of an array."""

    shape: tuple
    ndim: int
    size: int
    itemsize: int


@lru_cache(maxsize=4096)
def choose(shape, channels, itemsize, kind, inputs, workers):
    """Return the plan of a step as an array, or None for a fused step that is better not fused.

    It is kept for each shape: to make it takes longer than to work on a small array. And it is an
    array, as Numba takes longer to be given a tuple, let alone so many numbers.
    """
    x = Extents(shape, len(shape), math.prod(shape), itemsize)
    pieces = cut(x, channels, kind, workers)
    here = caches.found()
    if kind == FUSED:
        block = fused_block(x, channels, inputs, workers, here)
    else:
        block = split_block(x, channels, kind, pieces[0], workers)
    if not block:
        return None
    ahead = block if here.ahead else 0
    return np.array(Plan(*pieces, block, ahead, streams(x, kind, inputs, here)), np.int64)


def plan_step(x, channels, kind, inputs):
    """Return whether threads are to share a step, and what `choose` says."""
    workers = threads.count() if x.size >= PARALLEL_SIZE else 1
    if workers > 1 and x.size < SLEEPERS_SIZE and threads.sleep():
        workers = 1
    return workers > 1, choose(x.shape, channels, x.itemsize, kind, inputs, workers)
