"""The CPU backend: steps of batch normalization on canonical views.

A view is x[n, c, s] with contiguous rows or x[r, c] with contiguous channels (`bnnumba.layout`);
arrays of 16-bit floats are views as integers (`bnnumba.cpu.storage`). Arrays of one value per
channel are contiguous, and statistics are float64, but for those that `infer` is given: ``stats``
has the rows mean, m2, invstd, and the rest of the mean that float64 has no room for.
"""

import numpy as np

from . import parallel, threads
from .choices import FUSED, SUMS, WRITES, plan_step
from .parallel import constant_stats, merge_moments, update_running

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

# Values of a row x[n, c] up to which it is better one row with those of the other channels, whose
# vectors are always full (moments, training and backward of rows of 2: 8, 10 and 14 times faster,
# of 16: 1.3, 2 and 3 times; of 36 and 49, with 256 channels or more, slower).
SHORT_ROW = 32


def forward(x, channels, weight, bias, eps, y):
    """Write the normalized `x` to `y` and return the stats of the batch."""
    stats = np.empty((4, channels))
    shared, plan = plan_step(x, channels, FUSED, 1)
    if plan is not None:
        threads.run(parallel.forward, shared, plan, x, weight, bias, eps, stats, y)
        return stats
    collect_moments(x, eps, stats)
    normalize(x, weight, bias, stats[0], stats[3], stats[2], y)
    return stats


def collect_moments(x, eps, stats):
    """Write mean, m2, invstd and rest of each channel to `stats`."""
    shared, plan = plan_step(x, stats.shape[1], SUMS, 1)
    threads.run(parallel.collect, shared, plan, x, eps, stats)


def normalize(x, weight, bias, mean, rest, invstd, y):
    """Write (x - (mean + rest)) * invstd * weight + bias to `y`; an empty rest is 0."""
    shared, plan = plan_step(x, x.shape[1], WRITES, 1)
    threads.run(parallel.normalize, shared, plan, x, weight, bias, mean, rest, invstd, y)


def infer(x, weight, bias, mean, var, eps, y):
    """Write (x - mean) / sqrt(var + eps) * weight + bias to `y`."""
    shared, plan = plan_step(x, x.shape[1], WRITES, 1)
    threads.run(parallel.infer, shared, plan, x, weight, bias, mean, var, eps, y)


def backward(x, dy, weight, stats, dx, dweight, dbias):
    """Write the gradients of a batch that was normalized by its own statistics."""
    shared, plan = plan_step(x, stats.shape[1], FUSED, 2)
    if plan is not None:
        threads.run(parallel.backward, shared, plan, x, dy, weight, stats, dx, dweight, dbias)
        return
    sums = np.empty((2, stats.shape[1]))
    backward_reduce(x, dy, stats[0], stats[3], stats[2], sums, dweight, dbias)
    count = x.size // stats.shape[1]
    backward_input(x, dy, weight, stats[0], stats[3], stats[2], sums, count, dx)


def backward_reduce(x, dy, mean, rest, invstd, sums, dweight, dbias):
    """Write sum_dy and sum_dy_xmu to `sums`, and the gradients of the parameters."""
    shared, plan = plan_step(x, mean.size, SUMS, 2)
    threads.run(parallel.reduce, shared, plan, x, dy, mean, rest, invstd, sums, dweight, dbias)


def backward_input(x, dy, weight, mean, rest, invstd, sums, count, dx):
    """Write the gradient of the input, given the sums over `count` values per channel."""
    shared, plan = plan_step(x, x.shape[1], WRITES, 2)
    threads.run(
        parallel.input_gradient, shared, plan, x, dy, weight, mean, rest, invstd, sums,
        float(count), dx,
    )  # fmt: skip
