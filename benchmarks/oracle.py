"""The right results, in float64 and block by block, and how far a result is from them.

`bnnumba.reference` states the same formulas; it holds several copies of its input in extended
precision, too many for inputs of 100 MB. Arrays here are (A, C, S): channel second, any dtype.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import THREADS

_BLOCK = 1 << 19


def _blockwise(function, *arrays):
    """Results of function(slice of the first axis, the arrays there in float64), in order."""

    def apply(start):
        where = slice(start, start + rows)
        return function(where, *(a[where].astype(np.float64) for a in arrays))

    rows = max(1, _BLOCK // arrays[0][0].size)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(apply, range(0, len(arrays[0]), rows)))


def _channel_sums(function, *arrays):
    """Sum over everything but channels of what function makes of blocks."""
    return sum(_blockwise(lambda _, *blocks: function(*blocks).sum(axis=(0, 2)), *arrays))


def moments(x):
    """Mean and biased variance of each channel, by the corrected two-pass algorithm."""
    count = x.size // x.shape[1]
    mean = _channel_sums(lambda b: b, x) / count
    shift = _channel_sums(lambda b: b - mean[:, None], x) / count
    m2 = _channel_sums(lambda b: np.square(b - mean[:, None]), x)
    return mean + shift, m2 / count - np.square(shift)


def expected(op, x, dy, weight, bias, mean, var, eps):
    """The results of `op` by name; `mean` and `var` are those that inference is given."""
    if op != "inference":
        mean, var = moments(x)
    if op == "moments":
        return {"mean": mean, "var": var}
    mean, var, weight, bias = (a.astype(np.float64)[:, None] for a in (mean, var, weight, bias))
    invstd = 1 / np.sqrt(var + eps)
    result = np.empty(x.shape)

    def normalize(where, x):
        result[where] = (x - mean) * (invstd * weight) + bias

    if op != "backward":
        _blockwise(normalize, x)
        given = {} if op == "inference" else {"mean": mean[:, 0], "var": var[:, 0]}
        return {"y": result, **given}

    count = x.size // x.shape[1]
    sum_dy = _channel_sums(lambda dy: dy, dy)[:, None]
    sum_dy_xmu = _channel_sums(lambda x, dy: dy * (x - mean), x, dy)[:, None]
    slope = np.square(invstd) * sum_dy_xmu / count

    def differentiate(where, x, dy):
        result[where] = (dy - sum_dy / count - (x - mean) * slope) * (invstd * weight)

    _blockwise(differentiate, x, dy)
    return {"dx": result, "dweight": (sum_dy_xmu * invstd)[:, 0], "dbias": sum_dy[:, 0]}


def error(results, right):
    """The largest difference of any result, relative to the largest value it should have."""
    apart = []
    for name, result in results.items():
        want = right[name]
        if result.shape != want.shape:
            msg = f"{name}: expected shape {want.shape}, got {result.shape}"
            raise ValueError(msg)
        scale = np.max(_blockwise(lambda _, want: np.abs(want).max(), want))
        gap = _blockwise(lambda _, got, want: np.abs(got - want).max(), result, want)
        apart.append(np.max(gap) / scale)
    return float(np.max(apart))  # np.max, unlike max, keeps NaN
