"""Layouts: every way to store the same values gives the same results, without a copy if it can."""

import numpy as np
import pytest
from support import (
    LAYOUTS,
    assert_close,
    broadcast,
    normal,
    parameters,
    relative_error,
    same_bits,
)

import bnnumba as bn
from bnnumba import reference

WEIGHT, BIAS = parameters(5)


def check(x, dy, expected_x, expected_dy, axis=1):
    expected = reference.batch_norm_training(expected_x, WEIGHT, BIAS, axis=axis)
    y, saved = bn.batch_norm_training(x, WEIGHT, BIAS, axis=axis)
    assert_close(y, expected.y)
    assert relative_error(saved.moments.m2, expected.moments.m2) < 1e-12
    wanted = reference.batch_norm_backward(
        expected_dy, expected_x, expected.moments.mean, expected.invstd, WEIGHT, axis=axis
    )
    got = bn.batch_norm_backward(dy, saved)
    assert_close(got.x, wanted.x)
    assert_close(got.weight, wanted.weight, dtype=np.float32)
    assert_close(got.bias, wanted.bias, dtype=np.float32)
    mean, var = BIAS, np.abs(WEIGHT)
    assert_close(
        bn.batch_norm_inference(x, mean, var, WEIGHT, BIAS, axis=axis),
        reference.batch_norm_inference(expected_x, mean, var, WEIGHT, BIAS, axis=axis),
    )


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_the_input_gives_the_same_results(name, rank, dtype):
    shape = (6, 5, 3, 7, 4)[:rank] if rank > 2 else (26, 5)
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    arranged = LAYOUTS[name](x)
    np.testing.assert_array_equal(arranged.astype(float), x.astype(float))
    check(arranged, dy, x, dy)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradient_and_input_may_be_stored_differently(name):
    x, dy = normal((6, 5, 3, 7)), normal((6, 5, 3, 7), seed=1)
    check(x, LAYOUTS[name](dy), x, dy)
    check(LAYOUTS["channels_last"](x), LAYOUTS[name](dy), x, dy)
    check(LAYOUTS[name](x), LAYOUTS["channels_last"](dy), x, dy)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_broadcast_view_is_an_ordinary_input(axis, dtype):
    x = broadcast((6, 5, 3, 7), axis, dtype)
    dy = broadcast((6, 5, 3, 7), (axis + 1) % 4, dtype, seed=1)
    check(x, dy, x.copy(), dy.copy())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_one_row_or_one_value_may_be_repeated_by_strides_alone(channels, axis):
    # Rows at one address are not rows that follow on each other.
    x = np.broadcast_to(normal((1, channels)), (7, channels))
    mean, var = np.linspace(-1, 1, x.shape[axis]), np.linspace(1, 2, x.shape[axis])
    y = bn.batch_norm_inference(x, mean, var, axis=axis)
    assert_close(y, reference.batch_norm_inference(x, mean, var, axis=axis))
    y = bn.batch_norm_training(x, axis=axis)[0]
    assert_close(y, reference.batch_norm_training(x, axis=axis).y)


WRITEABLE = [name for name in LAYOUTS if name != "read_only"]


@pytest.mark.parametrize("name", WRITEABLE)
def test_every_layout_of_out_is_filled_and_nothing_around_it(name, dtype):
    x, dy = normal((6, 5, 3, 7), dtype), normal((6, 5, 3, 7), dtype, seed=1)
    mean, var = BIAS, np.abs(WEIGHT)
    y, saved = bn.batch_norm_training(x, WEIGHT, BIAS)
    dx = bn.batch_norm_backward(dy, saved).x
    z = bn.batch_norm_inference(x, mean, var)
    for call, expected in [
        (lambda out: bn.batch_norm_training(x, WEIGHT, BIAS, out=out)[0], y),
        (lambda out: bn.batch_norm_inference(x, mean, var, out=out), z),
        (lambda out: bn.batch_norm_backward(dy, saved, out=out).x, dx),
    ]:
        out = LAYOUTS[name](np.zeros_like(x))
        # What lies around a view was filled with NaN; count what is left of it.
        whole = out if out.base is None or out.base.dtype != dtype else out.base
        around = np.isnan(whole.astype(float)).sum()
        assert call(out) is out
        assert_close(out, expected.astype(float))
        assert np.isnan(whole.astype(float)).sum() == around


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("which", ["weight", "bias", "mean", "var"])
def test_parameters_may_be_stored_in_any_way(which, name):
    x, dy = normal((6, 5, 7)), normal((6, 5, 7), seed=1)
    arguments = {"weight": WEIGHT, "bias": BIAS, "mean": BIAS, "var": np.abs(WEIGHT)}
    arranged = LAYOUTS[name](np.stack([arguments[which]] * 2))[1]
    np.testing.assert_array_equal(arranged, arguments[which])
    given = {**arguments, which: arranged}
    y = bn.batch_norm_inference(x, **given)
    np.testing.assert_array_equal(y, bn.batch_norm_inference(x, **arguments))
    both = {k: given[k] for k in ("weight", "bias")}
    y, saved = bn.batch_norm_training(x, **both)
    expected_y, expected_saved = bn.batch_norm_training(x, WEIGHT, BIAS)
    np.testing.assert_array_equal(y, expected_y)
    for got, want in zip(
        bn.batch_norm_backward(dy, saved), bn.batch_norm_backward(dy, expected_saved), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["every_second_channel", "reversed_channels", "offset"])
def test_running_statistics_that_are_views_are_updated_in_place(name):
    x = normal((6, 5, 7), loc=2)
    mean = LAYOUTS[name](np.zeros((2, 5)))[1]
    var = LAYOUTS[name](np.ones((2, 5)))[1]
    bn.batch_norm_training(x, running_mean=mean, running_var=var)
    expected = reference.update_running(np.zeros(5), np.ones(5), reference.moments(x))
    assert relative_error(mean, expected[0]) < 1e-12
    assert relative_error(var, expected[1]) < 1e-12


@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_a_new_result_is_stored_as_its_input_is(name):
    x = LAYOUTS[name](normal((6, 5, 3, 7)))
    y, saved = bn.batch_norm_training(x)
    assert y.strides == x.strides
    assert bn.batch_norm_backward(x, saved).x.strides == x.strides
    assert bn.batch_norm_inference(x, BIAS, np.abs(WEIGHT)).strides == x.strides


NO_COPY = {
    "contiguous": lambda x: x,
    "channels_last": LAYOUTS["channels_last"],
    "samples_of_a_batch": lambda x: x[2:],
    "every_second_sample": lambda x: x[::2],
    "a_slice_of_channels": lambda x: x[:, 3:17],
    "rows": lambda x: x[:, :, 0, 0].copy(),
    "a_slice_of_columns": lambda x: x[:, :, 0, 0].copy()[:, 3:17],
}


def most_memory(call):
    """The most bytes that NumPy's arrays took during a call."""
    tracemalloc = pytest.importorskip("tracemalloc")
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", NO_COPY)
def test_no_copy_of_the_input_is_made_where_none_is_needed(name):
    x = NO_COPY[name](normal((8000, 20, 5, 2)))
    out = np.empty_like(x)
    mean, var = np.zeros(x.shape[1]), np.ones(x.shape[1])

    def calls():
        bn.moments(x)
        bn.batch_norm_inference(x, mean, var, out=out)
        saved = bn.batch_norm_training(x, out=out)[1]
        bn.batch_norm_backward(x, saved, out=out)

    # Scratch is per channel and per chunk of work.
    assert most_memory(calls) < x.nbytes // 3


@pytest.mark.parametrize("name", ["every_second_value", "reversed_values", "unaligned"])
def test_any_other_input_is_copied_once(name):
    x = LAYOUTS[name](normal((2000, 20, 5, 8)))
    out = np.empty(x.shape, x.dtype)
    mean, var = np.zeros(20), np.ones(20)
    for call in (
        lambda: bn.moments(x),
        lambda: bn.batch_norm_inference(x, mean, var, out=out),
        lambda: bn.batch_norm_training(x, out=out),
    ):
        assert most_memory(call) < 1.33 * x.nbytes


PER_CHANNEL = {
    "unaligned": LAYOUTS["unaligned"],
    "strided": lambda a: np.repeat(a, 3)[::3],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "of_one_value": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("weight_dtype", ["f4", "f8"])  # that of bias is f4: alike, or converted
@pytest.mark.parametrize("name", PER_CHANNEL)
@pytest.mark.parametrize("channels", [5, 21])
def test_per_channel_arguments_may_have_any_strides(channels, name, weight_dtype):
    x, dy = normal((6, channels, 4)), normal((6, channels, 4), seed=1)
    weight, bias = parameters(channels)
    mean, var = normal((channels,), seed=2), normal((channels,), seed=3) ** 2
    views = [PER_CHANNEL[name](a) for a in (weight.astype(weight_dtype), bias, mean, var)]
    assert not any(a.flags.aligned and a.flags.c_contiguous for a in views)

    def results(weight, bias, mean, var):
        y, saved = bn.batch_norm_training(x, weight, bias)
        layer = bn.BatchNorm(channels).eval()
        layer.weight, layer.bias, layer.running_mean, layer.running_var = weight, bias, mean, var
        evaluated = layer(x)
        conv = normal((channels, 3), np.float64)
        return [
            y, *bn.batch_norm_backward(dy, saved), bn.batch_norm_inference(x, mean, var, weight),
            evaluated, layer.backward(dy), *bn.fold_batch_norm(conv, bias, mean, var, weight, bias),
        ]  # fmt: skip

    plain = [np.array(a) for a in views]
    for got, expected in zip(results(*views), results(*plain), strict=True):
        assert got.dtype == expected.dtype
        assert same_bits(got, expected)
