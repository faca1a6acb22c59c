"""The oracle itself, against exact rational arithmetic and its own derivatives."""

from fractions import Fraction

import numpy as np
import pytest
from support import BFLOAT16, normal, parameters, relative_error, units

from bnnumba import reference

HARD = {
    "standard": normal(301),
    "offset_1e4": normal(301, loc=1e4),
    "offset_1e6": normal(301, loc=1e6),
    "first_is_1e4": np.concatenate([[np.float32(1e4)], normal(300)]),
    "alternating_1e7": np.float32(1e7) + np.resize([1, -1], 301).astype(np.float32),
    "alternating_1e8_float64": 1e8 + np.resize([1.0, -1.0], 301),
    "offset_1e12_float64": normal(301, np.float64, loc=1e12),
    "wide_range_float64": normal(301, np.float64) * 10.0 ** np.arange(-150, 151),
    "half": normal(301, np.float16, loc=100),
    "bfloat16": normal(301, BFLOAT16, loc=100),
}


@pytest.mark.parametrize("name", HARD)
def test_moments_agree_with_exact_arithmetic(name):
    values = [Fraction(float(v)) for v in HARD[name]]
    mean = sum(values) / len(values)
    m2 = sum((v - mean) ** 2 for v in values)
    got = reference.moments(HARD[name][:, None])
    assert got.count == len(values)
    assert relative_error(got.mean, [float(mean)]) < 1e-15
    assert relative_error(got.m2, [float(m2)]) < 1e-15


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_every_axis_is_the_same_computation(axis):
    x = normal((4, 5, 6), np.float64)
    moved = np.moveaxis(x, axis, 1)
    weight, bias = parameters(x.shape[axis], np.float64)
    got = reference.batch_norm_training(x, weight, bias, axis=axis)
    expected = reference.batch_norm_training(moved, weight, bias)
    np.testing.assert_allclose(got.y, np.moveaxis(expected.y, 1, axis), rtol=1e-15, atol=1e-15)
    dy = normal(x.shape, np.float64, seed=5)
    gradients = [
        reference.batch_norm_backward(g, a, expected.moments.mean, expected.invstd, weight, axis=ax)
        for g, a, ax in [(dy, x, axis), (np.moveaxis(dy, axis, 1), moved, 1)]
    ]
    np.testing.assert_allclose(gradients[0].x, np.moveaxis(gradients[1].x, 1, axis), atol=1e-14)
    np.testing.assert_allclose(gradients[0].weight, gradients[1].weight, rtol=1e-14)


@pytest.mark.parametrize("training", [True, False])
def test_backward_is_the_derivative_of_forward(training):
    x, dy = normal((3, 2, 4), np.float64), normal((3, 2, 4), np.float64, seed=1)
    weight, bias = parameters(2, np.float64)
    start = reference.batch_norm_training(x, weight, bias)

    def loss(x, weight, bias):
        if training:
            return float((reference.batch_norm_training(x, weight, bias).y * dy).sum())
        var = start.moments.m2 / start.moments.count
        return float(
            (reference.batch_norm_inference(x, start.moments.mean, var, weight, bias) * dy).sum()
        )

    got = reference.batch_norm_backward(
        dy, x, start.moments.mean, start.invstd, weight, training=training
    )
    arguments = {"x": x, "weight": weight, "bias": bias}
    step = 1e-6
    for name, value in arguments.items():
        numeric = np.empty_like(value)
        for i in np.ndindex(value.shape):
            up, down = value.copy(), value.copy()
            up[i] += step
            down[i] -= step
            numeric[i] = (loss(**{**arguments, name: up}) - loss(**{**arguments, name: down})) / (
                2 * step
            )
        np.testing.assert_allclose(getattr(got, name), numeric, rtol=1e-7, atol=1e-8)


def test_a_constant_channel_is_its_bias():
    x = np.full((3, 1, 4), 0.1, np.float32)
    got = reference.batch_norm_training(x, np.ones(1), np.array([0.7]), eps=0.0)
    assert got.moments.m2[0] == 0
    assert (got.y == 0.7).all()


def test_the_measure_of_error_counts_units_of_the_largest_value():
    expected = np.array([0.0, 1.0, -4.0])
    assert units(expected.astype(np.float32), expected) == 0
    off = expected.astype(np.float32)
    off[0] = 2.0**-20
    assert units(off, expected) == 2.0**-20 / (2.0**-23 * 4)


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [1.0, np.nan], [np.inf, np.inf], [np.inf, 1.0]])
def test_the_measure_of_error_sees_misplaced_nan_and_infinity(wrong):
    with pytest.raises(AssertionError):
        units(np.array(wrong, np.float32), np.array([np.nan, np.inf]))
