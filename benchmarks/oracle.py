"""The right results, in float64 and block by block, and how far a result is from them.

`bnnumba.reference` states the same formulas; it holds several copies of its input in extended
precision, too many for inputs of 100 MB. Arrays here are (A, C, S): channel second, any dtype.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import THREADS

_BLOCK = 1 << 17  # values: a few arrays of so many float64 fit in a core's own cache


def _cuts(shape):
    """Cut the first and the last of three axes, or the only one, into blocks."""
    rest = shape[1] * shape[2] if len(shape) == 3 else 1
    rows = max(1, _BLOCK // rest)
    for row in range(0, shape[0], rows):
        if len(shape) == 1:
            yield slice(row, row + rows)
            continue
        columns = max(1, _BLOCK // (rows * shape[1]))
        for column in range(0, shape[2], columns):
            yield slice(row, row + rows), slice(None), slice(column, column + columns)


def _blockwise(function, *arrays):
    """Results of function(where, the arrays there in float64) for all blocks, in order."""

    def apply(where):
        return function(where, *(a[where].astype(np.float64, copy=False) for a in arrays))

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(apply, _cuts(arrays[0].shape)))


def _channel_sums(function, *arrays):
    """Sums, over everything but channels, of each of the arrays that function makes of blocks."""

    def sums(where, *blocks):
        return np.stack([made.sum(axis=(0, 2)) for made in function(*blocks)])

    return sum(_blockwise(sums, *arrays))


def moments(x):
    """Mean and biased variance of each channel, by the corrected two-pass algorithm."""
    count = x.size // x.shape[1]
    (total,) = _channel_sums(lambda x: (x,), x)
    mean = total / count

    def powers(x):
        xmu = x - mean[:, None]
        return xmu, np.square(xmu)

    shift, m2 = _channel_sums(powers, x) / count
    return mean + shift, m2 - np.square(shift)


def tracked(x, weight, bias, running_mean, running_var, eps, momentum):
    """The results of training that updates running statistics, by name."""
    found = expected("training", x, None, weight, bias, None, None, eps)
    count = x.size // x.shape[1]
    unbiased = found["var"] * (count / (count - 1))
    pairs = {"running_mean": (running_mean, found["mean"]), "running_var": (running_var, unbiased)}
    moved = {name: old + momentum * (new - old) for name, (old, new) in pairs.items()}
    return {"y": found["y"], **moved}


def step(x, dy, weight, bias, running_mean, running_var, eps, momentum):
    """The results of that and of its backward pass, by name."""
    forward = tracked(x, weight, bias, running_mean, running_var, eps, momentum)
    return forward | expected("backward", x, dy, weight, bias, None, None, eps)


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
    sums = _channel_sums(lambda x, dy: (dy, dy * (x - mean)), x, dy)
    sum_dy, sum_dy_xmu = sums[:, :, None]
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
