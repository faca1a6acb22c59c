"""The CPU backend: steps of batch normalization on canonical views.

A view is x[n, c, s] with contiguous rows or x[r, c] with contiguous channels (`bnnumba.layout`);
arrays of 16-bit floats are views as integers (`bnnumba.cpu.simd`). Per-channel statistics are
float64, but for those that `infer` is given: ``stats`` has the rows mean, m2, invstd, and the rest
of the mean that float64 has no room for.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import caches, parallel, threads
from .normalize import WIDE
from .parallel import constant_stats, merge_moments, update_running
from .plan import even, plan_ncs, plan_rc, plan_writes
from .prefetching import PREFETCHED
from .sums import NARROW

__all__ = [
    "backward",
    "backward_input",
    "backward_reduce",
    "collect_moments",
    "constant_stats",
    "forward",
    "infer",
    "merge_moments",
    "normalize",
    "update_running",
]

# Below this many elements, starting the threads costs what they save. With as many, two threads
# took a fifth less time.
PARALLEL_SIZE = 131072
# Columns per block at most, channels in the ncs view: their accumulators must stay close, in the
# ncs view three vectors of eight in L1, in the rc view three or four numbers in L2: rows taken
# whole are read in longer runs (moments of 134 MB of 4096 channels: 4.6 ms, in blocks of 2048
# channels 4.8).
BLOCK_NCS, BLOCK_RC = 64, 16384
# Values of a row x[n, c] up to which it is better one row with those of the other channels, whose
# vectors are always full (moments, training and backward of rows of 2: 8, 10 and 14 times faster,
# of 16: 1.3, 2 and 3 times; of 36 and 49, with 256 channels or more, slower).
SHORT_ROW = 32
# Bytes of a run of memory in the rc view, in the cache, that are enough for a fused step (128 rows
# of 4096 channels: a fifth to a quarter less).
SHORT_RUN = 2048
# What a step is: two sweeps over each block of channels; sums over slabs, for its next step; or one
# that needs no sum, for which rows of any number of channels are one run.
FUSED, SUMS, WRITES = 0, 1, 2


def _plan(x, channels, kind, workers):
    n = x.shape[0]
    s = x.size // (n * channels)
    if kind == WRITES:
        together = 2 if x.ndim == 2 and channels > WIDE else 1
        return plan_writes(n, channels, s, together, workers)
    return plan_ncs(n, s) if x.ndim == 3 else plan_rc(n, s, x.shape[1])


def _fused_block(x, channels, inputs, workers, block_bytes, spill_bytes, shared_bytes):
    """Return how many channels a fused step takes at a time, or 0 if it is better not fused.

    They have `block_bytes`, or up to `spill_bytes` where their run of memory in each row would else
    be short. If it is short even so, by an eighth, two steps are faster, which go through memory in
    order (50 MB of 64 channels in runs of 1600 bytes: 1.7 ms against 5.2, 15 MB of 32 channels in
    runs of 6400 bytes: 290 us against 360). So they are where they can leave in the cache what a
    fused step would write past it (13 MB: an eighth to a fifth less).
    """
    s = x.size // (x.shape[0] * channels)
    most = BLOCK_NCS if x.ndim == 3 else max(1, BLOCK_RC // s)
    if x.size < PARALLEL_SIZE:
        return min(channels, most)
    if workers > 1 and channels < 2 * workers:
        return 0
    in_cache = not _streaming(x, FUSED, inputs, shared_bytes)
    if not in_cache and not _streaming(x, WRITES, inputs, shared_bytes):
        return 0
    channel_bytes = x.size // channels * x.itemsize * inputs
    long_run = -(-PREFETCHED // (s * x.itemsize))
    block = max(block_bytes // channel_bytes, min(long_run, spill_bytes // channel_bytes))
    block = max(1, min(block, most, channels // (4 * workers)))
    while block > 1 and not even(-(-channels // block), block, channels, workers):
        block -= 1
    shortest = SHORT_RUN if in_cache and x.ndim == 2 else PREFETCHED // 8 * 7
    return block if block * s * x.itemsize >= shortest else 0


def _split_block(x, channels, kind, slabs, workers):
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


def _streaming(x, kind, inputs, shared_bytes):
    """Return whether to write an output past the caches: it does not fit into them with the inputs.

    Written there, the lines that are about to be overwritten need not be read first. A fused step
    needs more of the cache, as it jumps from run to run (of 32 MB, forward of 13 MB took up to a
    fifth longer in the cache, backward of 6 MB by one thread a third).
    """
    arrays = 3 * inputs if kind == FUSED else inputs + 1
    return arrays * x.size * x.itemsize > shared_bytes


class _Extents(NamedTuple):
    """What a choice is made by, of an array."""

    shape: tuple
    ndim: int
    size: int
    itemsize: int


@lru_cache(maxsize=4096)
def _choose(shape, channels, itemsize, kind, inputs, workers):
    """Return the block of a step, how far ahead it fetches, its plan, and whether to stream.

    This is kept for each shape: to make the choice takes longer than to work on a small array.
    """
    x = _Extents(shape, len(shape), math.prod(shape), itemsize)
    plan = _plan(x, channels, kind, workers)
    here = caches.found()
    if kind == FUSED:
        block = _fused_block(x, channels, inputs, workers, here.block, here.spill, here.shared)
    else:
        block = _split_block(x, channels, kind, plan[0], workers)
    ahead = block if here.ahead else 0
    return block, ahead, plan, _streaming(x, kind, inputs, here.shared)


def _choice(x, channels, kind, inputs):
    """Return whether a step is worth threads, and what `_choose` says."""
    large = x.size >= PARALLEL_SIZE
    workers = threads.count() if large else 1
    return large, *_choose(x.shape, channels, x.itemsize, kind, inputs, workers)


def _write_choice(x, inputs):
    """Do `_choice` for a step that adds nothing up: each column is a channel to it."""
    return _choice(x, x.shape[1], WRITES, inputs)


def forward(x, channels, weight, bias, eps, y):
    """Write the normalized `x` to `y` and return the stats of the batch."""
    stats = np.empty((4, channels))
    large, block, ahead, plan, streaming = _choice(x, channels, FUSED, 1)
    if block:
        threads.run(
            parallel.forward, large, x, block, ahead, plan, weight, bias, eps, stats, y, streaming
        )
        return stats
    collect_moments(x, eps, stats)
    normalize(x, weight, bias, stats[0], stats[3], stats[2], y)
    return stats


def collect_moments(x, eps, stats):
    """Write mean, m2, invstd and rest of each channel to `stats`."""
    large, block, _, plan, _ = _choice(x, stats.shape[1], SUMS, 1)
    threads.run(parallel.collect, large, x, block, plan, eps, stats)


def normalize(x, weight, bias, mean, rest, invstd, y):
    """Write (x - (mean + rest)) * invstd * weight + bias to `y`; an empty rest is 0."""
    large, block, _, plan, streaming = _write_choice(x, 1)
    threads.run(
        parallel.normalize, large, x, block, plan, weight, bias, mean, rest, invstd, y, streaming
    )


def infer(x, weight, bias, mean, var, eps, y):
    """Write (x - mean) / sqrt(var + eps) * weight + bias to `y`."""
    large, block, _, plan, streaming = _write_choice(x, 1)
    threads.run(parallel.infer, large, x, block, plan, weight, bias, mean, var, eps, y, streaming)


def backward(x, dy, weight, stats, dx, dweight, dbias):
    """Write the gradients of a batch that was normalized by its own statistics."""
    large, block, ahead, plan, streaming = _choice(x, stats.shape[1], FUSED, 2)
    if block:
        threads.run(
            parallel.backward, large, x, dy, block, ahead, plan, weight, stats, dx, dweight,
            dbias, streaming,
        )  # fmt: skip
        return
    sums = np.empty((2, stats.shape[1]))
    backward_reduce(x, dy, stats[0], stats[3], stats[2], sums, dweight, dbias)
    count = x.size // stats.shape[1]
    backward_input(x, dy, weight, stats[0], stats[3], stats[2], sums, count, dx)


def backward_reduce(x, dy, mean, rest, invstd, sums, dweight, dbias):
    """Write sum_dy and sum_dy_xmu to `sums`, and the gradients of the parameters."""
    large, block, _, plan, _ = _choice(x, mean.size, SUMS, 2)
    threads.run(
        parallel.reduce, large, x, dy, block, plan, mean, rest, invstd, sums, dweight, dbias
    )


def backward_input(x, dy, weight, mean, rest, invstd, sums, count, dx):
    """Write the gradient of the input, given the sums over `count` values per channel."""
    large, block, _, plan, streaming = _write_choice(x, 2)
    threads.run(
        parallel.input_gradient, large, x, dy, block, plan, weight, mean, rest, invstd, sums,
        float(count), dx, streaming,
    )  # fmt: skip
