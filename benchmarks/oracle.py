"""The right results, in float64 and block by block, and how far a result is from them.

`bnnumba.reference` states the same formulas; it holds several copies of its input in extended
precision, too many for inputs of 100 MB. Arrays here are (A, C, S): channel second, any dtype.
"""

import numpy as np

_BLOCK = 1 << 20


def _blocks(*arrays):
    """Slices of the first axis, with the arrays there in float64."""
    rows = max(1, _BLOCK // arrays[0][0].size)
    for start in range(0, len(arrays[0]), rows):
        where = slice(start, start + rows)
        yield where, *(a[where].astype(np.float64) for a in arrays)


def moments(x):
    """Mean and biased variance of each channel, by the corrected two-pass algorithm."""
    count = x.size // x.shape[1]
    mean = sum(block.sum(axis=(0, 2)) for _, block in _blocks(x)) / count
    m2, shift = np.zeros_like(mean), np.zeros_like(mean)
    for _, block in _blocks(x):
        block -= mean[:, None]
        shift += block.sum(axis=(0, 2))
        m2 += np.square(block).sum(axis=(0, 2))
    shift /= count
    return mean + shift, m2 / count - np.square(shift)


def expected(op, x, dy, weight, bias, mean, var, eps):
    """The results of `op` by name: y, mean and var; x, weight and bias gradients; ..."""
    if op != "inference":
        mean, var = moments(x)
    if op == "moments":
        return {"mean": mean, "var": var}
    mean, var, weight, bias = (a.astype(np.float64)[:, None] for a in (mean, var, weight, bias))
    invstd = 1 / np.sqrt(var + eps)
    result = np.empty(x.shape)
    if op != "backward":
        for where, block in _blocks(x):
            result[where] = (block - mean) * (invstd * weight) + bias
        given = {} if op == "inference" else {"mean": mean[:, 0], "var": var[:, 0]}
        return {"y": result, **given}
    count = x.size // x.shape[1]
    sum_dy = sum(b.sum(axis=(0, 2)) for _, b in _blocks(dy))[:, None]
    sum_dy_xmu = sum((g * (b - mean)).sum(axis=(0, 2)) for _, b, g in _blocks(x, dy))[:, None]
    slope = np.square(invstd) * sum_dy_xmu / count
    for where, block, grad in _blocks(x, dy):
        result[where] = (grad - sum_dy / count - (block - mean) * slope) * (invstd * weight)
    return {"dx": result, "dweight": (sum_dy_xmu * invstd)[:, 0], "dbias": sum_dy[:, 0]}


def error(results, right):
    """The largest difference of any result, relative to the largest value it should have."""
    apart = []
    for name, result in results.items():
        want = right[name]
        if result.shape != want.shape:
            msg = f"{name}: expected shape {want.shape}, got {result.shape}"
            raise ValueError(msg)
        scale = np.max([np.abs(block).max() for _, block in _blocks(want)])
        pairs = _blocks(result, want)
        apart.append(np.max([np.abs(got - block).max() for _, got, block in pairs]) / scale)
    return float(np.max(apart))  # np.max, unlike max, keeps NaN
