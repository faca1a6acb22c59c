"""batch_norm_*: every result against the oracle, over dtypes, axes, shapes and arguments."""

import copy

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core.cgutils import voidptr_t
from numba.extending import intrinsic
from support import (
    BFLOAT16,
    DTYPES,
    assert_close,
    normal,
    parameters,
    relative_error,
    same_bits,
    scales,
)

import bnnumba as bn
from bnnumba import reference


def check_training(x, weight=None, bias=None, *, axis=1, eps=1e-5, seed=1000):
    """Forward and backward in training mode, every number that comes out."""
    y, saved = bn.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    expected = reference.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    dy = normal(x.shape, x.dtype, seed=seed)
    scale = scales(x, dy, saved.count, expected.invstd, weight)
    assert y.dtype == x.dtype
    assert_close(y, expected.y, scale=scale.y)
    statistics = np.float64 if x.dtype == np.float64 else np.float32
    assert saved.mean.dtype == saved.invstd.dtype == statistics
    assert saved.count == saved.moments.count == expected.moments.count
    assert relative_error(saved.moments.var(), expected.moments.m2 / saved.count) < 1e-12
    largest = float(np.max(np.abs(x.astype(np.float64))))
    assert_close(saved.moments.mean, expected.moments.mean, scale=largest)
    assert_close(saved.mean, expected.moments.mean, scale=largest if x.dtype == np.float64 else 0)
    unit = 1e-12 if statistics == np.float64 else 1.2e-7
    assert relative_error(saved.invstd, expected.invstd) < unit

    gradients = bn.batch_norm_backward(dy, saved)
    wanted = reference.batch_norm_backward(
        dy, x, expected.moments.mean, expected.invstd, weight, axis=axis
    )
    assert gradients.x.dtype == x.dtype
    assert_close(gradients.x, wanted.x, scale=scale.dx)
    parameter = statistics if weight is None else weight.dtype
    assert gradients.weight.dtype == parameter
    # Sums of float32 products are good to float32, whatever dtype they are handed out in.
    kind = np.float64 if x.dtype == parameter == np.float64 else np.float32
    sums = scale.sums if kind is np.float64 else 0.0
    assert_close(gradients.weight, wanted.weight, dtype=kind, scale=sums)
    assert_close(gradients.bias, wanted.bias, dtype=kind, scale=sums)


def check_inference(x, weight=None, bias=None, *, axis=1, param_dtype=np.float32):
    """Inference with statistics of the given dtype."""
    mean = np.linspace(-1, 1, x.shape[axis]).astype(param_dtype)
    var = np.linspace(0.1, 3, x.shape[axis]).astype(param_dtype)
    y = bn.batch_norm_inference(x, mean, var, weight, bias, eps=1e-3, axis=axis)
    assert y.dtype == x.dtype
    assert_close(y, reference.batch_norm_inference(x, mean, var, weight, bias, eps=1e-3, axis=axis))


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("given", ["weight,bias", "weight", "bias", "neither"])
def test_training_and_its_gradients_for_every_dtype_and_parameter(dtype, param_dtype, given, axis):
    x = normal((4, 6, 7, 19) if axis == 1 else (4, 7, 19, 6), dtype, loc=0.5)
    weight, bias = parameters(6, param_dtype)
    weight = weight if "weight" in given else None
    bias = bias if "bias" in given else None
    check_training(x, weight, bias, axis=axis)


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("given", ["weight,bias", "weight", "bias", "neither"])
def test_inference_for_every_dtype_and_parameter(dtype, param_dtype, given, axis):
    x = normal((4, 6, 7, 19) if axis == 1 else (4, 7, 19, 6), dtype, loc=0.5)
    weight, bias = parameters(6, param_dtype)
    weight = weight if "weight" in given else None
    bias = bias if "bias" in given else None
    check_inference(x, weight, bias, axis=axis, param_dtype=param_dtype)


RANKS = [(rank, axis) for rank in range(2, 7) for axis in range(-rank, rank)]


@pytest.mark.parametrize(("rank", "axis"), RANKS)
def test_the_channel_may_be_any_axis_of_any_rank(rank, axis):
    x = normal((5, 3, 4, 2, 6, 2)[:rank] if rank > 2 else (17, 5))
    weight, bias = parameters(x.shape[axis])
    check_training(x, weight, bias, axis=axis)
    check_inference(x, weight, bias, axis=axis)


# Channel counts and row lengths around every vector width and block size.
@pytest.mark.parametrize("extent", range(1, 71))
def test_every_row_length_and_channel_count_up_to_70(extent):
    for shape in [(3, 5, extent), (2, extent, 37), (37, extent)]:
        weight, bias = parameters(shape[1])
        check_training(normal(shape, seed=extent), weight, bias)
        check_inference(normal(shape, seed=extent), weight, bias)
    check_training(normal((7, 3, extent), np.float64, seed=extent))
    check_training(normal((37, extent), np.float64, seed=extent))
    check_training(normal((3, 5, extent), np.float16, seed=extent))
    check_training(normal((37, extent), BFLOAT16, seed=extent))


# Shapes chosen for the ways in which work is cut: a channel over threads, threads over channels,
# samples outside, rows shorter than a vector, one row, and tensors well above the caches.
SHAPES = [
    (64, 1, 200, 200),
    (1, 1, 1_000_003),
    (96, 2, 111, 113),
    (40, 3, 211, 100),
    (3, 3, 300_007),
    (200_003, 1),
    (200_003, 2),
    (100_003, 3),
    (65_536, 256),
    (128, 1024),
    (301, 4101),
    (520, 20_011),
    (2, 3001, 5),
    (33, 2048, 7, 7),
    (8, 32, 16, 16),
    (4, 8, 4, 4),
    (5000, 70, 3),
    (20_000, 17, 1),
    (1, 40_000),
    (2, 50_001),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_of_work(shape):
    x, weight_bias = normal(shape, loc=1), parameters(shape[1])
    check_training(x, *weight_bias)
    check_inference(x, *weight_bias)


@pytest.mark.parametrize("shape", [(16, 64, 40, 41), (70_001, 65)], ids=["ncs", "rc"])
def test_large_tensors_of_every_dtype(shape, dtype):
    check_training(normal(shape, dtype), *parameters(shape[1]))


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("loc", [1e4, 1e6])
def test_an_offset_costs_no_digits(loc, axis):
    shape = (6, 5, 31, 29) if axis == 1 else (6, 31, 29, 5)
    check_training(normal(shape, loc=loc), *parameters(5), axis=axis)


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
def test_inference_with_a_large_mean_costs_no_digits(axis):
    shape = (6, 5, 31, 29) if axis == 1 else (6, 31, 29, 5)
    x = normal(shape, loc=1e6)
    mean, var = np.full(5, 1e6 + 0.123), np.linspace(0.5, 2, 5)
    y = bn.batch_norm_inference(x, mean, var, *parameters(5), axis=axis)
    assert_close(y, reference.batch_norm_inference(x, mean, var, *parameters(5), axis=axis))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_data_near_the_ends_of_float32(scale):
    x = normal((4, 3, 50), scale=scale)
    y, saved = bn.batch_norm_training(x, eps=0.0)
    expected = reference.batch_norm_training(x, eps=0.0)
    assert relative_error(saved.moments.m2, expected.moments.m2) < 1e-12
    assert_close(y, expected.y)


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_gradients_of_data_far_from_one(scale, axis):
    check_training(
        normal((4, 50, 3) if axis == -1 else (4, 3, 50), scale=scale), eps=0.0, axis=axis
    )


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 10.0])
def test_eps_is_inside_the_square_root(eps):
    check_training(normal((4, 3, 25), scale=0.01), *parameters(3), eps=eps)


# What is special about one channel, in every dtype and, in float32, on every way of cutting work.
ONE_CHANNEL = pytest.mark.parametrize(
    ("dtype", "channels", "size"),
    [(dtype, channels, 41) for dtype in DTYPES for channels in (3, 40)]
    + [(DTYPES[0], 3, 8011), (DTYPES[0], 40, 807)],
    ids=str,
)


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -1e7])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
@ONE_CHANNEL
def test_a_constant_channel_gives_exactly_its_bias(dtype, channels, size, axis, value, eps):
    value = 100.0 if dtype == np.float16 and abs(value) > 1e4 else value
    shape = (37, channels, size) if axis == 1 else (37, size, channels)
    x = normal(shape, dtype)
    np.moveaxis(x, axis, 0)[1] = value
    weight, bias = parameters(channels)
    y, saved = bn.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    assert saved.moments.m2[1] == 0
    assert (np.moveaxis(y, axis, 0)[1] == bias[1].astype(dtype)).all()
    if eps == 0:
        assert saved.invstd[1] == 0
    gradients = bn.batch_norm_backward(normal(shape, dtype, seed=1), saved)
    assert np.isfinite(gradients.x.astype(np.float64)).all()
    assert gradients.weight[1] == 0


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@ONE_CHANNEL
def test_nan_and_infinity_stay_in_their_channel(dtype, channels, size, axis, poison):
    shape = (37, channels, size) if axis == 1 else (37, size, channels)
    x, weight_bias = normal(shape, dtype), parameters(channels)
    bad = channels - 2
    others = np.arange(channels) != bad
    np.moveaxis(x, axis, 0)[bad, 4, 17] = poison
    running_mean, running_var = np.zeros(channels), np.ones(channels)
    y, saved = bn.batch_norm_training(
        x, *weight_bias, axis=axis, running_mean=running_mean, running_var=running_var
    )
    expected = reference.batch_norm_training(x, *weight_bias, axis=axis)
    channel_first = np.moveaxis(y, axis, 0)
    assert np.isnan(channel_first[bad].astype(np.float64)).all()
    assert_close(channel_first[others], np.moveaxis(expected.y, axis, 0)[others])
    assert np.isnan(running_var[bad])
    assert np.isfinite(running_var[others]).all()
    assert np.isfinite(running_mean[others]).all()

    dy = normal(shape, dtype, seed=1)
    gradients = bn.batch_norm_backward(dy, saved)
    dx = np.moveaxis(gradients.x, axis, 0).astype(np.float64)
    assert np.isnan(dx[bad]).all()
    assert np.isfinite(dx[others]).all()
    assert np.isnan(gradients.weight[bad])
    assert np.isfinite(gradients.weight[others]).all()
    assert np.isfinite(gradients.bias).all()

    # A gradient that is not finite spoils its own channel too, and no other.
    clean = bn.batch_norm_training(normal(shape, dtype), *weight_bias, axis=axis)[1]
    np.moveaxis(dy, axis, 0)[bad, 4, 17] = poison
    gradients = bn.batch_norm_backward(dy, clean)
    dx = np.moveaxis(gradients.x, axis, 0).astype(np.float64)
    assert not np.isfinite(dx[bad]).any()
    assert np.isfinite(dx[others]).all()
    assert np.isfinite(gradients.bias[others]).all()
    assert not np.isfinite(gradients.bias[bad])


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
def test_inference_passes_nan_and_infinity_on_element_by_element(dtype, axis):
    x = normal((3, 20, 3), dtype)
    x[1, 4, 2], x[2, 5, 0], x[0, 6, 1] = np.nan, np.inf, -np.inf
    channels = x.shape[axis]
    mean, var = np.zeros(channels), np.ones(channels)
    y = bn.batch_norm_inference(x, mean, var, axis=axis)
    assert_close(y, reference.batch_norm_inference(x, mean, var, axis=axis))


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
def test_out_receives_the_result_and_is_returned(dtype, axis):
    shape = (4, 6, 51) if axis == 1 else (4, 51, 6)
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    weight, bias = parameters(6)
    y, saved = bn.batch_norm_training(x, weight, bias, axis=axis)
    gradients = bn.batch_norm_backward(dy, saved)
    out = np.empty_like(x)
    got, saved_out = bn.batch_norm_training(x, weight, bias, axis=axis, out=out)
    assert got is out
    assert same_bits(out, y)
    out = np.empty_like(x)
    got = bn.batch_norm_backward(dy, saved_out, out=out)
    assert got.x is out
    for a, b in zip(got, gradients, strict=True):
        assert same_bits(a, b)
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    out = np.empty_like(x)
    assert bn.batch_norm_inference(x, mean, var, axis=axis, out=out) is out
    assert same_bits(out, bn.batch_norm_inference(x, mean, var, axis=axis))


@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_out_may_be_the_input_itself(axis, size):
    channels, spatial = (6, 51) if size == "small" else (64, 3001)
    shape = (11, channels, spatial) if axis == 1 else (11, spatial, channels)
    x = normal(shape)
    weight, bias = parameters(channels)
    expected = bn.batch_norm_training(x, weight, bias, axis=axis)[0]
    work = x.copy()
    bn.batch_norm_training(work, weight, bias, axis=axis, out=work)
    assert same_bits(work, expected)
    mean, var = normal(channels, seed=3), np.abs(normal(channels, seed=4))
    work = x.copy()
    bn.batch_norm_inference(work, mean, var, weight, bias, axis=axis, out=work)
    assert same_bits(work, bn.batch_norm_inference(x, mean, var, weight, bias, axis=axis))
    saved = bn.batch_norm_training(x, weight, bias, axis=axis)[1]
    dy = normal(shape, seed=1)
    expected = bn.batch_norm_backward(dy, saved)
    got = bn.batch_norm_backward(dy, saved, out=dy)
    assert got.x is dy
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


def test_arguments_are_not_written():
    x, dy = normal((4, 3, 20)), normal((4, 3, 20), seed=1)
    weight, bias = parameters(3)
    arrays = [x, dy, weight, bias]
    copies = [a.copy() for a in arrays]
    saved = bn.batch_norm_training(x, weight, bias)[1]
    bn.batch_norm_backward(dy, saved)
    bn.batch_norm_inference(x, bias, np.abs(weight), weight, bias)
    for array, kept in zip(arrays, copies, strict=True):
        assert same_bits(array, kept)


def test_results_do_not_share_memory_with_one_another_or_the_input():
    x = normal((4, 3, 20))
    y, saved = bn.batch_norm_training(x)
    first = bn.batch_norm_backward(y, saved)
    second = bn.batch_norm_backward(y, saved)
    arrays = [x, y, *first, *second]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])


@pytest.mark.parametrize("running_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.75, 1.0])
@pytest.mark.parametrize("correction", [0, 1, 0.5])
def test_running_statistics_follow_their_formula(running_dtype, momentum, correction):
    x = normal((5, 4, 9), loc=3)
    running_mean = np.linspace(-1, 1, 4).astype(running_dtype)
    running_var = np.linspace(0.5, 2, 4).astype(running_dtype)
    mean, var = reference.update_running(
        running_mean, running_var, reference.moments(x), momentum=momentum, correction=correction
    )
    bn.batch_norm_training(
        x,
        running_mean=running_mean,
        running_var=running_var,
        momentum=momentum,
        correction=correction,
    )
    unit = 1.2e-7 if running_dtype == np.float32 else 1e-14
    assert relative_error(running_mean, mean) < unit
    assert relative_error(running_var, var) < unit


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_one_running_statistic_may_be_left_out(which):
    x, running = normal((5, 4, 9), loc=3), np.ones(4)
    both = {"running_mean": np.ones(4), "running_var": np.ones(4)}
    bn.batch_norm_training(x, **{which: running})
    bn.batch_norm_training(x, **both)
    assert same_bits(running, both[which])
    assert (running != 1).all()


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 3, 0), (0, 3), (4, 0, 5), (0, 0), (4, 0)])
def test_an_empty_input_gives_an_empty_result_and_leaves_running_statistics_alone(shape, dtype):
    channels = shape[1]
    x = np.empty(shape, dtype)
    weight, bias = parameters(channels)
    running_mean, running_var = np.full(channels, 2.0), np.full(channels, 3.0)
    y, saved = bn.batch_norm_training(
        x, weight, bias, running_mean=running_mean, running_var=running_var
    )
    assert y.shape == shape
    assert y.dtype == dtype
    assert (running_mean == 2).all()
    assert (running_var == 3).all()
    gradients = bn.batch_norm_backward(np.empty(shape, dtype), saved)
    assert gradients.x.shape == shape
    assert (gradients.weight == np.zeros(channels)).all()
    assert (gradients.bias == np.zeros(channels)).all()
    assert bn.batch_norm_inference(x, running_mean, running_var, weight, bias).shape == shape
    assert bn.moments(x).mean.shape == (channels,)


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1)])
def test_one_value_per_channel_gives_bias_and_no_gradient(shape):
    weight, bias = parameters(5)
    y, saved = bn.batch_norm_training(normal(shape), weight, bias)
    assert same_bits(y.ravel(), bias)
    gradients = bn.batch_norm_backward(np.ones(shape, np.float32), saved)
    assert (gradients.x == 0).all()
    assert (gradients.weight == 0).all()
    assert (gradients.bias == 1).all()


def test_a_saved_forward_can_be_differentiated_again_and_after_another_forward():
    x, dy = normal((4, 3, 20)), normal((4, 3, 20), seed=1)
    saved = bn.batch_norm_training(x, *parameters(3))[1]
    first = bn.batch_norm_backward(dy, saved)
    bn.batch_norm_training(x * 7, *parameters(3, seed=9))
    for a, b in zip(first, bn.batch_norm_backward(dy, saved), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_training_or_inference_by_its_flag(training):
    x = normal((4, 3, 20))
    weight, bias = parameters(3)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    copies = mean.copy(), var.copy()
    y = bn.batch_norm(x, mean, var, weight, bias, training, 0.2, 1e-3)
    if training:
        expected = bn.batch_norm_training(
            x, weight, bias, running_mean=copies[0], running_var=copies[1], momentum=0.2, eps=1e-3
        )[0]
    else:
        expected = bn.batch_norm_inference(x, mean, var, weight, bias, eps=1e-3)
    assert same_bits(y, expected)
    assert same_bits(mean, copies[0])
    assert same_bits(var, copies[1])


def test_batch_norm_in_training_needs_no_running_statistics():
    x = normal((4, 3, 20))
    y = bn.batch_norm(x, None, None, training=True)
    assert same_bits(y, bn.batch_norm_training(x)[0])


@pytest.mark.parametrize("given", ["everything", "no_conv_bias", "no_affine"])
def test_folding_gives_the_convolution_followed_by_batch_norm(given):
    rng = np.random.default_rng(0)
    conv_weight = rng.standard_normal((8, 3, 5, 5)).astype(np.float32)
    conv_bias = None if given == "no_conv_bias" else rng.standard_normal(8).astype(np.float32)
    mean, var = rng.standard_normal(8).astype(np.float32), rng.uniform(0.5, 2, 8).astype(np.float32)
    weight, bias = (None, None) if given == "no_affine" else parameters(8)
    patches = rng.standard_normal((10, 3 * 5 * 5))
    folded_weight, folded_bias = bn.fold_batch_norm(
        conv_weight, conv_bias, mean, var, weight, bias, 1e-5
    )
    assert folded_weight.shape == conv_weight.shape
    assert folded_weight.dtype == folded_bias.dtype == np.float32
    plain = patches @ conv_weight.reshape(8, -1).T.astype(np.float64)
    plain = plain if conv_bias is None else plain + conv_bias
    expected = reference.batch_norm_inference(plain, mean, var, weight, bias)
    got = patches @ folded_weight.reshape(8, -1).T.astype(np.float64) + folded_bias
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


HALVES = pytest.mark.parametrize(
    "half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"]
)


@HALVES
@pytest.mark.parametrize("factor", [1.0, 1.0078125, -0.59765625, 2.0**-14, 2.0**9])
@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
def test_sixteen_bit_values_are_read_exactly_and_rounded_once_to_nearest_even(half, factor, axis):
    # Every number there is, times a factor of so few digits that float32 holds the product.
    every = np.arange(2**16, dtype=np.uint16).view(half)
    x = every.reshape((1, 1, -1) if axis == 1 else (-1, 1))
    mean, var, weight = np.zeros(1), np.ones(1), np.array([factor])
    y = bn.batch_norm_inference(x, mean, var, weight, None, eps=0.0, axis=axis).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (every.astype(np.float32) * np.float32(factor)).astype(half)
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))


@HALVES
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0xFFC00000])
@pytest.mark.parametrize("axis", [1, -1], ids=["ncs", "rc"])
def test_any_kind_of_nan_among_the_parameters_is_nan_in_sixteen_bits(half, bits, axis):
    x, dy = normal((2, 3, 40), half), normal((2, 3, 40), half, seed=1)
    x, dy = (np.moveaxis(a, 1, axis) for a in (x, dy))
    weight = np.ones(3, np.float32)
    weight.view(np.uint32)[1] = bits
    y, saved = bn.batch_norm_training(x, weight, axis=axis)
    dx = bn.batch_norm_backward(dy, saved).x
    inferred = bn.batch_norm_inference(x, weight, np.ones(3), axis=axis)
    for result in (y, dx, inferred):
        is_nan = np.moveaxis(np.isnan(result.astype(np.float32)), axis, 0)
        np.testing.assert_array_equal(is_nan, is_nan[:, :1, :1] & np.ones_like(is_nan))
        np.testing.assert_array_equal(is_nan[:, 0, 0], [False, True, False])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3, 0), (0, 3, 4)])
def test_an_empty_batch_may_be_written_to_an_empty_out(shape):
    x, out = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    ones = np.ones(shape[1], np.float32)
    assert bn.batch_norm_inference(x, ones, ones, out=out) is out
    y, saved = bn.batch_norm_training(x, out=out)
    assert y is out
    assert bn.batch_norm_backward(x, saved, out=out).x is out


def test_dx_may_be_written_over_x_once():
    x, dy = normal((4, 3, 5)), normal((4, 3, 5), seed=1)
    _, saved = bn.batch_norm_training(x)
    expected = bn.batch_norm_backward(dy, saved).x
    assert same_bits(bn.batch_norm_backward(dy, saved, out=x).x, expected)
    with pytest.raises(bn.BnnumbaValueError, match=r"saved: x, .* was written over"):
        bn.batch_norm_backward(dy, saved)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_with_momentum_1_running_statistics_are_the_batchs_own(scale):
    x = scale * normal((64, 5), np.float64)
    mean, var = np.full(5, 7.0), np.ones(5)
    bn.batch_norm_training(x, running_mean=mean, running_var=var, momentum=1)
    m = bn.moments(x)
    assert same_bits(mean, m.mean)
    assert same_bits(var, m.var(1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("eps", [1e-40, 1e-80, 1e-300, 5e-324])
def test_a_constant_channel_gives_the_bias_for_any_eps(eps, dtype):
    x, bias = np.full((5, 2, 9), 3.25, dtype), np.array([0.5, -2], dtype)
    y, saved = bn.batch_norm_training(x, np.array([2, -3], dtype), bias, eps=eps)
    assert (y == bias[:, None]).all()
    gradients = bn.batch_norm_backward(np.zeros_like(x), saved)
    assert not gradients.x.any()


@pytest.mark.parametrize("step", [1, 2])
def test_a_backward_pass_goes_by_the_weight_as_it_is(step):
    x, dy, weight = normal((8, 5, 7)), normal((8, 5, 7), seed=1), np.ones(5 * step)[::step]
    _, saved = bn.batch_norm_training(x, weight)
    before = bn.batch_norm_backward(dy, saved).x
    weight[...] = 4
    assert same_bits(bn.batch_norm_backward(dy, saved).x, 4 * before)


def test_an_out_between_the_rows_of_x_does_not_spoil_the_backward_pass():
    both = normal((8, 6, 10))
    x, out = both[:, ::2], both[:, 1::2]
    kept = x.copy()
    _, saved = bn.batch_norm_training(x, out=out)
    dx = bn.batch_norm_backward(np.ones_like(x), saved).x
    assert same_bits(x, kept)
    _, saved = bn.batch_norm_training(kept)
    assert same_bits(dx, bn.batch_norm_backward(np.ones_like(x), saved).x)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_out_over_a_parameter_that_is_converted_is_an_error(name):
    out = np.zeros((8, 3), np.float32)
    parameters = {"weight": np.zeros(3), "bias": np.zeros(3), name: out[0]}
    with pytest.raises(bn.BnnumbaValueError, match=f"out: must not overlap {name}"):
        bn.batch_norm_training(normal((8, 3)), out=out, **parameters)
    assert not out.any()


@intrinsic
def pointer_to(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], voidptr_t)

    return numba.types.voidptr(numba.types.intp), generate


@numba.njit
def over(address):
    """Return an array that neither owns its memory nor names an owner."""
    return numba.carray(pointer_to(address), (20, 3), np.float32)


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="needs the compiler")
def test_arrays_over_memory_of_no_array_overlap_as_others_do():
    memory = normal((21, 3))
    x, shifted, again = (over(memory.ctypes.data + 4 * start) for start in (0, 1, 0))
    assert x.base is None
    with pytest.raises(bn.BnnumbaValueError, match="out: must not overlap x"):
        bn.batch_norm_training(x, out=shifted)
    _, saved = bn.batch_norm_training(x, out=again)
    with pytest.raises(bn.BnnumbaValueError, match="was written over"):
        bn.batch_norm_backward(x, saved)


def test_strides_of_axes_of_one_do_not_make_another_array():
    x = normal((1, 4, 3, 1))
    same = x[0, :, :, 0][None, :, :, None]
    assert same.strides != x.strides
    expected = bn.batch_norm_training(x)[0]
    assert same_bits(bn.batch_norm_training(x, out=same)[0], expected)


def test_a_copy_of_what_was_saved_knows_that_x_was_written_over():
    x, dy = normal((6, 3)), normal((6, 3), seed=1)
    _, saved = bn.batch_norm_training(x)
    other = copy.copy(saved)
    bn.batch_norm_backward(dy, saved, out=x)
    with pytest.raises(bn.BnnumbaValueError, match="was written over"):
        bn.batch_norm_backward(dy, other)


def test_a_deep_copy_of_what_was_saved_has_the_weight_that_it_shows():
    torch = pytest.importorskip("torch")
    for kind in (np.asarray, torch.from_numpy):
        x, dy, weight = kind(normal((6, 3))), kind(normal((6, 3), seed=1)), kind(parameters(3)[0])
        other = copy.deepcopy(bn.batch_norm_training(x, weight)[1])
        before = np.asarray(bn.batch_norm_backward(dy, other).x)
        other.weight *= 2
        assert same_bits(np.asarray(bn.batch_norm_backward(dy, other).x), 2 * before)
