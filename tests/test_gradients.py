"""Gradients against finite differences of bnnumba's own forward pass, in float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
from support import normal, parameters

import bnnumba as bn

STEP = 1e-5  # the error of a central difference is about STEP**2, and 1e-16 / STEP of rounding


def numeric_gradient(function, value):
    """The derivative of a scalar function at value, by central differences."""
    gradient = np.empty_like(value)
    for i in np.ndindex(value.shape):
        kept = value[i]
        value[i] = kept + STEP
        up = function()
        value[i] = kept - STEP
        gradient[i] = (up - function()) / (2 * STEP)
        value[i] = kept
    return gradient


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 3), 1), ((3, 2, 5), 1), ((3, 5, 2), -1), ((2, 3, 2, 2, 2), 1), ((3, 2, 4), 0)],
    ids=str,
)
@pytest.mark.parametrize("given", ["weight,bias", "weight", "bias", "neither"])
def test_training(shape, axis, given):
    x, dy = normal(shape, np.float64), normal(shape, np.float64, seed=1)
    weight, bias = parameters(shape[axis], np.float64)
    arguments = {"weight": weight, "bias": bias}
    arguments = {name: value for name, value in arguments.items() if name in given}

    def loss():
        return (bn.batch_norm_training(x, axis=axis, eps=0.1, **arguments)[0] * dy).sum()

    saved = bn.batch_norm_training(x, axis=axis, eps=0.1, **arguments)[1]
    gradients = bn.batch_norm_backward(dy, saved)
    np.testing.assert_allclose(gradients.x, numeric_gradient(loss, x), rtol=1e-8, atol=1e-8)
    for name, value in arguments.items():
        np.testing.assert_allclose(
            getattr(gradients, name), numeric_gradient(loss, value), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("axis", [1, -1])
def test_evaluation(axis):
    shape = (3, 2, 5) if axis == 1 else (3, 5, 2)
    x, dy = normal(shape, np.float64), normal(shape, np.float64, seed=1)
    layer = bn.BatchNorm(2, eps=0.1, axis=axis).eval()
    layer.weight = np.array([0.7, -1.3])
    layer.bias = np.array([0.1, 0.2])
    layer.running_mean = np.array([0.3, -0.2])
    layer.running_var = np.array([0.5, 2.0])

    def loss():
        return (layer(x) * dy).sum()

    loss()
    dx = layer.backward(dy).copy()
    dweight, dbias = layer.weight_grad.copy(), layer.bias_grad.copy()
    np.testing.assert_allclose(dx, numeric_gradient(loss, x), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(dweight, numeric_gradient(loss, layer.weight), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(dbias, numeric_gradient(loss, layer.bias), rtol=1e-8, atol=1e-8)


def test_a_constant_channel_with_no_eps_has_no_gradient():
    x = np.full((3, 1, 4), 0.5)
    saved = bn.batch_norm_training(x, eps=0.0)[1]
    gradients = bn.batch_norm_backward(normal(x.shape, np.float64), saved)
    assert (gradients.x == 0).all()
    assert (gradients.weight == 0).all()


@pytest.mark.parametrize(
    "shape",
    [(10_000_000, 2), (1_000_000, 1), (256, 2), (8192, 2, 2), (5461, 2, 3), (32, 1, 200, 200),
     (64, 3, 5000)],
)  # fmt: skip
def test_long_sums_of_one_gradient_do_not_drift(shape):
    # As of a mean loss, with float64's every digit in use: each addition rounds the same way.
    x, dy = normal(shape, np.float64), np.full(shape, 0.1)
    _, saved = bn.batch_norm_training(x, np.ones(shape[1]))
    gradients = bn.batch_norm_backward(dy, saved)
    expected = float(Fraction(0.1) * (x.size // shape[1]))
    np.testing.assert_allclose(gradients.bias, expected, rtol=16 * 2.0**-52)
    assert abs(gradients.x).max() < 16 * 2.0**-52


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize(("dtype", "limits"), [(np.float32, (2, 2)), (np.float64, (50, 200))])
def test_what_float64_has_no_room_for_of_a_mean_is_not_lost(n, dtype, limits):
    # A channel that is constant but for one value: rounded to float64, the mean of 1e7 is off by as
    # much as 1e-7 standard deviations, and x at the one value is hundreds of them away.
    x = np.full((n, 2), 1e7, dtype)
    x[3] += 1
    dy = np.random.default_rng(0).random((n, 2)).astype(dtype)
    y, saved = bn.batch_norm_training(x, eps=0.0)
    got = bn.batch_norm_backward(dy, saved)
    # Exact: with d = 1 at one of n, mean(d) = 1 / n and var(d) = (n - 1) / n^2.
    mean, std = Fraction(1, n), math.sqrt(n - 1) / n
    at, elsewhere = float(1 - mean) / std, float(-mean) / std
    dbias = np.array([math.fsum(column) for column in dy.T.astype(float)])
    dy3 = dy[3].astype(float)
    dweight = dy3 * at + (dbias - dy3) * elsewhere
    dx3 = (dy3 - dbias / n - at * dweight / n) / std
    largest = abs(got.x).max()

    def units(a, b, scale):
        return np.max(abs(a - b)) / np.spacing(dtype(scale))

    assert units(y[3], at, at) < limits[0]
    assert units(got.x[3], dx3, largest) < limits[0]
    assert units(got.weight, dweight, abs(dweight).max()) < limits[1]


@pytest.mark.parametrize("place", [0, -1, 7])
@pytest.mark.parametrize("shape", [(1_000_000, 1), (100_000, 9), (20, 3, 5000)])
def test_an_outlier_does_not_cost_the_mean_its_digits(shape, place):
    x = normal(shape, np.float64)
    x[place] += 1e6 * (np.arange(x[place].size) == 0).reshape(x[place].shape)
    mean = bn.moments(x).mean
    expected = np.moveaxis(x, 1, 0).reshape(shape[1], -1)
    expected = np.array([math.fsum(row) / row.size for row in expected])
    # As good as the sum of a chunk that holds the outlier allows.
    chunk = 2048 if x.ndim == 2 else 16384
    limit = 2.0**-52 * (abs(expected) + 1e6 * chunk / (x.size // shape[1]))
    assert (abs(mean - expected) < limit).all(), abs(mean - expected) / limit
