"""The CPU backend: steps of batch normalization on canonical views.

A view is x[n, c, s] with contiguous rows or x[r, c] with contiguous channels (`bnnumba.layout`);
arrays of 16-bit floats are views as integers (`bnnumba.cpu.simd`). Per-channel statistics are
float64: ``stats`` has the rows mean, m2 and invstd.
"""

import numpy as np

from . import parallel, threads
from .parallel import constant_stats, update_running
from .plan import plan_ncs, plan_rc

__all__ = [
    "backward",
    "backward_input",
    "backward_reduce",
    "collect_moments",
    "constant_stats",
    "forward",
    "normalize",
    "update_running",
]

# Below this many elements, starting the threads costs more than they save.
PARALLEL_SIZE = 65536
# A block of channels, and all that a fused step sweeps twice, should stay within half of a 1 MiB
# L2 cache.
BLOCK_BYTES = 512 * 1024
# From this size on, outputs are written past the caches: reading the lines that are about to be
# overwritten cost a third of the time (25 MB: 2.6 ms against 1.5).
STREAM_BYTES = 16 * 1024 * 1024
# Rows shorter than this have too many ends that cannot be streamed.
STREAM_ROW_BYTES = 512
# Channels per block where a block cannot stay in the cache: their accumulators fit in L1.
WIDE_BLOCK = 1024


def _plan(x):
    return plan_ncs(x.shape[0], x.shape[2]) if x.ndim == 3 else plan_rc(x.shape[0])


def _fused_block(x, arrays):
    """Return how many channels a fused step takes at a time, or 0 if it is better not fused."""
    channels = x.shape[1]
    workers = threads.count()
    channel_bytes = x.size // channels * x.itemsize * arrays
    if x.ndim == 3:
        if channels < 2 * workers and workers > 1:
            return 0  # too few channels to share out
        return max(1, min(BLOCK_BYTES // channel_bytes, channels // (4 * workers)))
    # Neighbouring channels share cache lines, so that a block is a whole number of lines wide.
    line = 64 // x.itemsize
    lines = min(BLOCK_BYTES // channel_bytes // line, channels // (2 * workers * line))
    return lines * line


def _split_block(x):
    return 1 if x.ndim == 3 and x.shape[2] >= 1024 else min(x.shape[1], WIDE_BLOCK)


def _streams(x, out):
    row = x.shape[2] if x.ndim == 3 else x.shape[1]
    return out.size * out.itemsize >= STREAM_BYTES and row * x.itemsize >= STREAM_ROW_BYTES


def forward(x, weight, bias, eps, y):
    """Write the normalized `x` to `y` and return the stats of the batch."""
    channels = x.shape[1]
    stats = np.empty((3, channels))
    if x.size < PARALLEL_SIZE:
        parallel.forward.serial(x, channels, _plan(x), weight, bias, eps, stats, y, False)
        return stats
    block = _fused_block(x, 1)
    if block:
        threads.run(
            parallel.forward, True, x, block, _plan(x), weight, bias, eps, stats, y, _streams(x, y)
        )
        return stats
    collect_moments(x, eps, stats)
    normalize(x, weight, bias, stats[0], stats[2], y)
    return stats


def collect_moments(x, eps, stats):
    """Write mean, m2 and invstd of each channel to `stats`."""
    large = x.size >= PARALLEL_SIZE
    threads.run(parallel.collect, large, x, _split_block(x), _plan(x), eps, stats)


def normalize(x, weight, bias, mean, invstd, y):
    """Write (x - mean) * invstd * weight + bias to `y`."""
    large = x.size >= PARALLEL_SIZE
    block, stream = _split_block(x), _streams(x, y)
    threads.run(
        parallel.normalize, large, x, block, _plan(x), weight, bias, mean, invstd, y, stream
    )


def backward(x, dy, weight, stats, dx, dweight, dbias):
    """Write the gradients of a batch that was normalized by its own statistics."""
    if x.size < PARALLEL_SIZE:
        parallel.backward.serial(
            x, dy, x.shape[1], _plan(x), weight, stats, dx, dweight, dbias, False
        )
        return
    block = _fused_block(x, 2)
    if block:
        stream = _streams(x, dx)
        threads.run(
            parallel.backward, True, x, dy, block, _plan(x), weight, stats, dx, dweight, dbias,
            stream,
        )  # fmt: skip
        return
    sums = np.empty((2, x.shape[1]))
    backward_reduce(x, dy, stats[0], stats[2], sums, dweight, dbias)
    count = x.size // x.shape[1]
    backward_input(x, dy, weight, stats[0], stats[2], sums, count, dx)


def backward_reduce(x, dy, mean, invstd, sums, dweight, dbias):
    """Write sum_dy and sum_dy_xmu to `sums`, and the gradients of the parameters."""
    large = x.size >= PARALLEL_SIZE
    block = _split_block(x)
    threads.run(parallel.reduce, large, x, dy, block, _plan(x), mean, invstd, sums, dweight, dbias)


def backward_input(x, dy, weight, mean, invstd, sums, count, dx):
    """Write the gradient of the input, given the sums over `count` values per channel."""
    large = x.size >= PARALLEL_SIZE
    block, stream = _split_block(x), _streams(x, dx)
    threads.run(
        parallel.input_gradient, large, x, dy, block, _plan(x), weight, mean, invstd, sums,
        float(count), dx, stream,
    )  # fmt: skip
