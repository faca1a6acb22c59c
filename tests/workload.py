"""Calls that reach every path of the kernels, for tests that run them in unusual processes.

``results`` computes them, ``digest`` condenses their bits, ``check`` compares with the oracle.
Data and expected values do not depend on bnnumba, so a digest says whether bits are the same.
"""

from __future__ import annotations

import hashlib

import numpy as np
from support import BFLOAT16, assert_close, normal, parameters, relative_error

import bnnumba as bn
from bnnumba import reference

# (shape, axis): work split over channels, over samples, inside a channel, and not at all.
SMALL = [
    ((4, 6, 33), 1),
    ((37, 70), 1),
    ((5, 9, 40), -1),
    ((3, 17, 5), 1),
    ((90, 2, 7), 1),
    ((1, 40, 3), 1),
    ((1001, 3), 1),
    ((7, 5, 31, 3), -1),
]
LARGE = [
    ((64, 64, 28, 28), 1),
    ((32, 512, 7, 7), 1),
    ((64, 1, 200, 200), 1),
    ((16, 2, 30_011), 1),
    ((16, 3, 30_011), 1),
    ((3, 1, 400_009), 1),
    ((65_537, 1), 1),
    ((300_007, 2), 1),
    ((65_537, 3), 1),
    ((32_768, 256), 1),
    ((259, 4101), 1),
    ((16, 56, 56, 64), -1),
    ((8, 32, 16, 16), 1),
    ((4001, 40, 5), 1),
    ((70, 1000, 2, 4), 1),
    ((9, 3000, 31), 1),
    ((100, 7001), 1),
]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = (np.dtype(np.float16), BFLOAT16)


def inputs(shape, axis, dtype):
    """x, dy, weight, bias, running mean and running variance."""
    x, dy = normal(shape, dtype, loc=1), normal(shape, dtype, seed=1)
    channels = shape[axis]
    return x, dy, *parameters(channels), np.zeros(channels, np.float32), np.ones(channels)


def compute(x, dy, weight, bias, mean, var, axis):
    """Every kernel, once: y, dx, dweight, dbias, moments, running statistics, inference."""
    mean, var = mean.copy(), var.copy()
    y, saved = bn.batch_norm_training(
        x, weight, bias, running_mean=mean, running_var=var, axis=axis
    )
    gradients = bn.batch_norm_backward(dy, saved)
    m = bn.moments(x, axis=axis)
    z = bn.batch_norm_inference(x, mean, var, weight, bias, axis=axis)
    return [y, *gradients, saved.mean, saved.invstd, saved.moments.m2, m.mean, m.m2, mean, var, z]


def digest(cases=None, dtypes=FLOATS + HALVES) -> str:
    """A hash of every bit of every result."""
    total = hashlib.sha256()
    for dtype in dtypes:
        for shape, axis in SMALL + LARGE if cases is None else cases:
            for array in compute(*inputs(shape, axis, dtype), axis):
                total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def check(cases=SMALL, dtypes=FLOATS) -> None:
    """Compare every result with the oracle; raise AssertionError where one is wrong."""
    for dtype in dtypes:
        for shape, axis in cases:
            arguments = inputs(shape, axis, dtype)
            x, dy, weight, bias, mean, var = arguments
            got = compute(*arguments, axis)
            forward = reference.batch_norm_training(x, weight, bias, axis=axis)
            m = forward.moments
            backward = reference.batch_norm_backward(
                dy, x, m.mean, forward.invstd, weight, axis=axis
            )
            assert_close(got[0], forward.y)
            assert_close(got[1], backward.x)
            assert_close(got[2], backward.weight, dtype=np.float32)
            assert_close(got[3], backward.bias, dtype=np.float32)
            assert relative_error(got[6], m.m2) < 1e-12
            assert relative_error(got[8], m.m2) < 1e-12
            mean, var = reference.update_running(mean, var, m)
            assert_close(got[9], mean, dtype=np.float32)
            assert_close(got[10], var, dtype=np.float32)
            z = reference.batch_norm_inference(x, got[9], got[10], weight, bias, axis=axis)
            assert_close(got[11], z)
