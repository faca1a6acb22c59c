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
from .memory import PREFETCHED
from .parallel import constant_stats, merge_moments, update_running
from .plan import plan_ncs, plan_rc, plan_writes

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
# Channels per block at most: their accumulators must stay close, in the ncs view three vectors of
# eight in L1, in the rc view three or four numbers in L2: rows taken whole are read in longer runs
# (moments of 134 MB of 4096 channels: 4.6 ms, in blocks of 2048 channels 4.8).
BLOCK_NCS, BLOCK_RC = 64, 16384
# What a step is: two sweeps over each block of channels; sums over slabs, for its next step; or one
# that needs no sum, for which rows of any number of channels are one run.
FUSED, SUMS, WRITES = 0, 1, 2


def _plan(x, kind, workers):
    s = x.shape[2] if x.ndim == 3 else 1
    if kind == WRITES:
        return plan_writes(x.shape[0], x.shape[1], s, workers)
    return plan_ncs(x.shape[0], s) if x.ndim == 3 else plan_rc(x.shape[0])


def _even(items, size, total, workers):
    """Return whether no worker has more to do than a thirtieth above its share of the total.

    All items but the last are of one size, and each worker does as many of them.
    """
    return 30 * workers * -(-items // workers) * size <= 31 * total


def _fused_block(x, inputs, workers, block_bytes, spill_bytes):
    """Return how many channels a fused step takes at a time, or 0 if it is better not fused.

    They have `block_bytes`, or up to `spill_bytes` where their rows would else be short.

    In the rc view neighbouring channels share cache lines, and a block narrow enough to stay in the
    cache would read them piecemeal: two sweeps over whole rows were twice as fast. What stays in
    the cache as a whole is one block.
    """
    channels = x.shape[1]
    if x.ndim == 2:
        return channels if x.size < PARALLEL_SIZE else 0
    if x.size < PARALLEL_SIZE:
        return min(channels, BLOCK_NCS)
    if workers > 1 and channels < 2 * workers:
        return 0
    channel_bytes = x.size // channels * x.itemsize * inputs
    long_run = -(-PREFETCHED // (x.shape[2] * x.itemsize))
    block = max(block_bytes // channel_bytes, min(long_run, spill_bytes // channel_bytes))
    block = max(1, min(block, BLOCK_NCS, channels // (4 * workers)))
    while block > 1 and not _even(-(-channels // block), block, channels, workers):
        block -= 1
    return block


def _split_block(x, kind, slabs, workers):
    """Return how many channels a step takes at a time that is cut into slabs as well."""
    channels = x.shape[1]
    most = BLOCK_RC if x.ndim == 2 else BLOCK_NCS
    blocks = 1 if kind == WRITES else -(-channels // most)
    block = -(-channels // blocks)
    # Narrow blocks are read piecemeal, so that there are only as many as the threads can share.
    while block > 1 and not _even(slabs * blocks, block, slabs * channels, workers):
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
def _choose(shape, itemsize, kind, inputs, workers):
    """Return the block of a step, how far ahead it fetches, its plan, and whether to stream.

    This is kept for each shape: to make the choice takes longer than to work on a small array.
    """
    x = _Extents(shape, len(shape), math.prod(shape), itemsize)
    plan = _plan(x, kind, workers)
    here = caches.found()
    if kind == FUSED:
        block = _fused_block(x, inputs, workers, here.block, here.spill)
    else:
        block = _split_block(x, kind, plan[0], workers)
    ahead = block if here.ahead else 0
    return block, ahead, plan, _streaming(x, kind, inputs, here.shared)


def _choice(x, kind, inputs):
    """Return whether a step is worth threads, and what `_choose` says."""
    large = x.size >= PARALLEL_SIZE
    return large, *_choose(x.shape, x.itemsize, kind, inputs, threads.count() if large else 1)


def forward(x, weight, bias, eps, y):
    """Write the normalized `x` to `y` and return the stats of the batch."""
    stats = np.empty((4, x.shape[1]))
    large, block, ahead, plan, streaming = _choice(x, FUSED, 1)
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
    large, block, _, plan, _ = _choice(x, SUMS, 1)
    threads.run(parallel.collect, large, x, block, plan, eps, stats)


def normalize(x, weight, bias, mean, rest, invstd, y):
    """Write (x - (mean + rest)) * invstd * weight + bias to `y`; an empty rest is 0."""
    large, block, _, plan, streaming = _choice(x, WRITES, 1)
    threads.run(
        parallel.normalize, large, x, block, plan, weight, bias, mean, rest, invstd, y, streaming
    )


def infer(x, weight, bias, mean, var, eps, y):
    """Write (x - mean) / sqrt(var + eps) * weight + bias to `y`."""
    large, block, _, plan, streaming = _choice(x, WRITES, 1)
    threads.run(parallel.infer, large, x, block, plan, weight, bias, mean, var, eps, y, streaming)


def backward(x, dy, weight, stats, dx, dweight, dbias):
    """Write the gradients of a batch that was normalized by its own statistics."""
    large, block, ahead, plan, streaming = _choice(x, FUSED, 2)
    if block:
        threads.run(
            parallel.backward, large, x, dy, block, ahead, plan, weight, stats, dx, dweight,
            dbias, streaming,
        )  # fmt: skip
        return
    sums = np.empty((2, x.shape[1]))
    backward_reduce(x, dy, stats[0], stats[3], stats[2], sums, dweight, dbias)
    count = x.size // x.shape[1]
    backward_input(x, dy, weight, stats[0], stats[3], stats[2], sums, count, dx)


def backward_reduce(x, dy, mean, rest, invstd, sums, dweight, dbias):
    """Write sum_dy and sum_dy_xmu to `sums`, and the gradients of the parameters."""
    large, block, _, plan, _ = _choice(x, SUMS, 2)
    threads.run(
        parallel.reduce, large, x, dy, block, plan, mean, rest, invstd, sums, dweight, dbias
    )


def backward_input(x, dy, weight, mean, rest, invstd, sums, count, dx):
    """Write the gradient of the input, given the sums over `count` values per channel."""
    large, block, _, plan, streaming = _choice(x, WRITES, 2)
    threads.run(
        parallel.input_gradient, large, x, dy, block, plan, weight, mean, rest, invstd, sums,
        float(count), dx, streaming,
    )  # fmt: skip
