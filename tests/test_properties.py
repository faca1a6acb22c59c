"""What holds for every input, over random shapes, axes, strides and dtypes."""

from typing import NamedTuple

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import (
    DTYPES,
    PARAM_DTYPES,
    assert_close,
    normal,
    parameters,
    relative_error,
    scales,
)

import bnnumba as bn
from bnnumba import reference


class Input(NamedTuple):
    """Data and its channel axis; a failure shows how to make it, not its values."""

    x: np.ndarray
    axis: int

    def __repr__(self):
        x = self.x
        return f"Input({x.dtype}, shape={x.shape}, strides={x.strides}, axis={self.axis})"


@st.composite
def inputs(draw, dtypes=tuple(DTYPES), min_extent=1):
    """An array stored in any way, and its channel axis."""
    rank = draw(st.integers(2, 6))
    largest = {2: 90, 3: 40, 4: 14, 5: 7, 6: 5}[rank]
    shape = draw(st.lists(st.integers(min_extent, largest), min_size=rank, max_size=rank))
    axis = draw(st.integers(-rank, rank - 1))
    dtype = draw(st.sampled_from(dtypes))
    order = draw(st.permutations(range(rank)))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, -1, -2]), min_size=rank, max_size=rank))
    margin = draw(st.lists(st.integers(0, 2), min_size=rank, max_size=rank))
    # Memory runs through the axes in any order, in any direction, with gaps and margins.
    sizes = [(e - 1) * abs(s) + 1 + m for e, s, m in zip(shape, steps, margin, strict=True)]
    memory = np.full([sizes[a] for a in order], np.nan, dtype).transpose(np.argsort(order))
    whole = tuple(slice(m, None) for m in margin)
    view = memory[whole][tuple(slice(None, None, s) for s in steps)]
    assert view.shape == tuple(shape)
    seed = draw(st.integers(0, 2**32 - 1))
    loc = draw(st.sampled_from([0.0, 1.0, 1000.0] if dtype.itemsize > 2 else [0.0, 1.0]))
    view[...] = normal(shape, dtype, seed=seed, loc=loc)
    if draw(st.booleans()):
        repeated = draw(st.integers(0, rank - 1))
        first = tuple(slice(0, 1) if a == repeated else slice(None) for a in range(rank))
        view = np.broadcast_to(view[first], shape)
    elif draw(st.booleans()):
        view.flags.writeable = False
    return Input(view, axis)


def count(x, axis):
    return x.size // x.shape[axis]


@settings(max_examples=400)
@given(
    given_x=inputs(),
    param_dtype=st.sampled_from(PARAM_DTYPES),
    which=st.sampled_from(["wb", "w", "b", ""]),
    eps=st.sampled_from([1e-5, 1e-3, 1.0]),
)
def test_training_and_its_gradients(given_x, param_dtype, which, eps):
    x, axis = given_x
    assume(count(x, axis) > 1)
    weight, bias = parameters(x.shape[axis], param_dtype)
    weight, bias = weight if "w" in which else None, bias if "b" in which else None
    expected = reference.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    y, saved = bn.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    dy = normal(x.shape, x.dtype, seed=2**40)
    scale = scales(x, dy, saved.count, expected.invstd, weight)
    assert_close(y, expected.y, scale=scale.y)
    assert relative_error(saved.moments.m2, expected.moments.m2) < 1e-12
    wanted = reference.batch_norm_backward(
        dy, x, expected.moments.mean, expected.invstd, weight, axis=axis
    )
    got = bn.batch_norm_backward(dy, saved)
    assert got.x.shape == x.shape
    assert_close(got.x, wanted.x, scale=scale.dx)
    # Sums of float32 products are good to float32, whatever dtype they are handed out in.
    kind = np.float64 if x.dtype == got.weight.dtype == np.float64 else np.float32
    scale = scale.sums if kind is np.float64 else 0.0
    assert_close(got.weight, wanted.weight, dtype=kind, scale=scale)
    assert_close(got.bias, wanted.bias, dtype=kind, scale=scale)


@settings(max_examples=200)
@given(given_x=inputs(), eps=st.sampled_from([0.0, 1e-5, 1.0]))
def test_inference(given_x, eps):
    x, axis = given_x
    channels = x.shape[axis]
    mean, var = normal(channels, seed=4), np.abs(normal(channels, seed=5)) + np.float32(0.1)
    weight, bias = parameters(channels)
    y = bn.batch_norm_inference(x, mean, var, weight, bias, eps=eps, axis=axis)
    scale = scales(x, x, x.size, reference.invstd(var, eps), weight).y
    expected = reference.batch_norm_inference(x, mean, var, weight, bias, eps=eps, axis=axis)
    assert_close(y, expected, scale=scale)


@settings(max_examples=200)
@given(given_x=inputs())
def test_moments(given_x):
    x, axis = given_x
    expected, m = reference.moments(x, axis=axis), bn.moments(x, axis=axis)
    assert m.count == expected.count
    assert relative_error(m.m2, expected.m2) < 1e-12
    assert (np.abs(m.mean - expected.mean) <= 1e-15 * np.abs(x.astype(np.float64)).max()).all()


@given(given_x=inputs(dtypes=(np.dtype(np.float64),)))
def test_a_normalized_channel_has_mean_zero_and_variance_one(given_x):
    x, axis = given_x
    assume(count(x, axis) > 8)
    m = bn.moments(bn.batch_norm_training(x, axis=axis, eps=0.0)[0], axis=axis)
    constant = bn.moments(x, axis=axis).m2 == 0
    assert (np.abs(m.mean) < 1e-11).all()
    np.testing.assert_allclose(m.var()[~constant], 1, rtol=1e-11)
    assert (m.var()[constant] == 0).all()


@given(given_x=inputs(dtypes=(np.dtype(np.float64),)))
def test_a_gradient_is_orthogonal_to_a_shift_and_to_a_scaling_of_its_channel(given_x):
    x, axis = given_x
    assume(count(x, axis) > 8)
    y, saved = bn.batch_norm_training(x, axis=axis, eps=0.0)
    dx = bn.batch_norm_backward(normal(x.shape, np.float64, seed=2**40), saved).x
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    scale = np.abs(dx).max(axis=others) * count(x, axis)
    assert (np.abs(dx.sum(axis=others)) <= 1e-11 * scale).all()
    assert (np.abs((dx * y).sum(axis=others)) <= 1e-10 * scale).all()


@given(given_x=inputs(), cut=st.integers(0, 100), along=st.integers(0, 5))
def test_moments_of_a_whole_are_the_merged_moments_of_its_parts(given_x, cut, along):
    x, axis = given_x
    along %= x.ndim
    assume(along != axis % x.ndim)
    a, b = np.split(x, [cut % (x.shape[along] + 1)], axis=along)
    merged = bn.moments(a, axis=axis).merge(bn.moments(b, axis=axis))
    expected = reference.moments(x, axis=axis)
    assert merged.count == expected.count
    assert relative_error(merged.m2, expected.m2) < 1e-12
