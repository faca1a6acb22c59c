"""What several test files share: the measure of error, data, layouts, and fresh processes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
PARAM_DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]

# One unit in the last place at 1.0 (the distance to the next number).
UNIT = {dtype: float(ml_dtypes.finfo(dtype).eps) for dtype in DTYPES}

# How many units each dtype may be off, see `units`. float16 and bfloat16 are computed in float32
# and rounded once, which costs half a unit; a float64 result carries the rounding of its sums.
LIMIT = {np.dtype(np.float32): 2.0, np.dtype(np.float64): 16.0, DTYPES[2]: 0.51, BFLOAT16: 0.51}


def units(got, expected, dtype=None, scale=0.0) -> float:
    """The largest error in units in the last place, relative to the scale of the tensor.

    ``max|got - expected| / (eps * max|expected|)``, where eps is the distance from 1 to the next
    number of ``dtype`` (that of got, unless given) and both maxima go over the whole tensor. A
    larger ``scale`` may be given where the expected values are what a cancellation left over.
    NaN and infinities must be in the same places and do not count otherwise.
    """
    got = np.asarray(got)
    unit = UNIT[np.dtype(dtype or got.dtype)]
    expected = np.asarray(expected).astype(np.float64)
    assert got.shape == expected.shape
    got = got.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    if not finite.any():
        return 0.0
    error = float(np.max(np.abs(got[finite] - expected[finite])))
    scale = max(scale, float(np.max(np.abs(expected[finite]))))
    if scale == 0:
        return 0.0 if error == 0 else np.inf
    return error / (unit * scale)


def assert_close(got, expected, dtype=None, limit=None, scale=0.0) -> None:
    """Assert that got is within the limit of its dtype, in `units`, of the float64 expected."""
    got = np.asarray(got)
    dtype = np.dtype(dtype or got.dtype)
    error = units(got, expected, dtype, scale)
    allowed = LIMIT[dtype] if limit is None else limit
    assert error <= allowed, f"{error:.3g} units in the last place of {dtype}, allowed {allowed}"


class Scales(NamedTuple):
    """Scales, for `units`, of results that may be small because their terms cancelled."""

    y: float
    dx: float
    sums: float


def scales(x, dy, count, invstd, weight=None) -> Scales:
    """The scales of y, of dx, and of the gradients of weight and bias.

    Where a channel has few values, the terms of dx nearly cancel. float64 results are as coarse
    as the float64 input that they are computed from, and as their sums; float32 and 16-bit
    results are computed from float64 statistics, and get no such allowance.
    """
    factor = np.abs(invstd if weight is None else invstd * weight.astype(np.float64))
    gain = float(np.max(factor, initial=0.0))
    top = float(np.max(np.abs(dy.astype(np.float64)), initial=0.0))
    dx = top * gain if count < 16 else 0.0
    if x.dtype != np.float64:
        return Scales(0.0, dx, 0.0)
    spread = float(np.max(np.abs(x), initial=0.0) * np.max(invstd, initial=0.0))
    largest = float(np.max(np.abs(x), initial=0.0))
    return Scales(largest * gain, top * gain * max(1.0, spread), count**0.5 * max(1.0, spread))


def relative_error(got, expected) -> float:
    """The largest elementwise relative error; 0 is only right if it is exactly 0."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    error = np.abs(got - expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.max(np.where(error == 0, 0.0, error / np.abs(expected)), initial=0.0))


def same_bits(a, b) -> bool:
    """Whether two arrays are equal to the last bit, NaN payloads and signs of zero included."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def normal(shape, dtype=np.float32, *, seed=0, loc=0.0, scale=1.0) -> np.ndarray:
    """Normally distributed data, rounded to dtype."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * scale + loc).astype(dtype)


def parameters(channels, dtype=np.float32, *, seed=1):
    """A weight away from zero, of both signs, and a bias."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 1.5, channels) * np.where(np.arange(channels) % 3 == 2, -1, 1)
    return weight.astype(dtype), rng.standard_normal(channels).astype(dtype)


def _permuted(x, order):
    """The values of x, stored so that memory runs through the axes in the given order."""
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def _channels_last(x):
    return _permuted(x, [0, *range(2, x.ndim), 1])


def _offset(x):
    big = np.full([extent + 3 for extent in x.shape], np.nan, x.dtype)
    view = big[tuple(slice(1, 1 + extent) for extent in x.shape)]
    view[...] = x
    return view


def _stepped(x, axis):
    shape = list(x.shape)
    shape[axis] *= 2
    big = np.full(shape, np.nan, x.dtype)
    view = big[tuple(slice(None, None, 2 if a == axis % x.ndim else 1) for a in range(x.ndim))]
    view[...] = x
    return view


def _reversed(x, axes):
    index = tuple(slice(None, None, -1 if a in axes else 1) for a in range(x.ndim))
    return np.ascontiguousarray(x[index])[index]


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)[1:]
    view = np.ndarray(x.shape, x.dtype, raw)
    view[...] = x
    return view


# Ways to store the same values. Each takes an array with the channel at axis 1 and returns an
# equal one (which is writeable where that is possible).
LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channels_last": _channels_last,
    "channels_first": lambda x: _permuted(x, [1, 0, *range(2, x.ndim)]),
    "fortran": np.asfortranarray,
    "offset": _offset,
    "offset_channels_last": lambda x: _channels_last(_offset(x)),
    "every_second_sample": lambda x: _stepped(x, 0),
    "every_second_channel": lambda x: _stepped(x, 1),
    "every_second_value": lambda x: _stepped(x, -1),
    "reversed_samples": lambda x: _reversed(x, {0}),
    "reversed_channels": lambda x: _reversed(x, {1}),
    "reversed_values": lambda x: _reversed(x, {x.ndim - 1}),
    "reversed_all": lambda x: _reversed(x, set(range(x.ndim))),
    "read_only": _read_only,
    "unaligned": _unaligned,
}


def broadcast(shape, axis, dtype=np.float32, *, seed=0) -> np.ndarray:
    """A view of that shape whose stride along one axis is 0."""
    small = normal(
        [1 if a == axis % len(shape) else e for a, e in enumerate(shape)], dtype, seed=seed
    )
    strides = [0 if a == axis % len(shape) else s for a, s in enumerate(small.strides)]
    return as_strided(small, shape, strides, writeable=False)


def run_python(code, *arguments, env=None, timeout=900, check=True):
    """Run code in a fresh interpreter; return the finished process (stdout and stderr as text)."""
    import bnnumba

    # The process starts beside the tests, so that it imports the package that they import, or
    # the one that env names first in PYTHONPATH.
    tests, package = pathlib.Path(__file__).parent, pathlib.Path(bnnumba.__file__).parent.parent
    environment = {**os.environ, **{name: str(value) for name, value in (env or {}).items()}}
    path = [(env or {}).get("PYTHONPATH"), tests, package, os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in path if p)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        cwd=tests,
        timeout=timeout,
        text=True,
        capture_output=True,
        check=False,
    )
    if check:
        assert process.returncode == 0, (
            f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
        )
    return process


def run_pytest(*arguments, env, timeout=900):
    """Run pytest as `run_python` does; something must have passed."""
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    quiet = ("-q", "-x", "-p", "no:cacheprovider")
    assert " passed" in run_python(code, *quiet, *arguments, env=env, timeout=timeout).stdout


THREADING_LAYERS = ["workqueue", "omp", "tbb"]


def run_with_layer(layer, code, *arguments, threads=4, timeout=900):
    """Run code under one of Numba's threading layers; skip where that cannot be loaded."""
    env = {"NUMBA_NUM_THREADS": threads, "NUMBA_THREADING_LAYER": layer}
    if layer == "tbb":  # where `pip install tbb` puts it, the loader does not look by itself
        env["LD_LIBRARY_PATH"] = f"{sys.prefix}/lib"
    process = run_python(code, *arguments, env=env, timeout=timeout, check=False)
    if process.returncode and "No threading layer could be loaded" in process.stderr:
        pytest.skip(f"the threading layer {layer} is not available here")
    assert process.returncode == 0, f"exit {process.returncode}\n{process.stderr}"
    return process.stdout
