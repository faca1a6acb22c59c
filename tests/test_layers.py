"""BatchNorm, the layer: parameters, running statistics, forward, backward, state."""

import copy
import pickle

import numpy as np
import pytest
from support import BFLOAT16, assert_close, normal, parameters, relative_error, same_bits

import bnnumba as bn
from bnnumba import reference


def affine_layer(channels=4, **options):
    layer = bn.BatchNorm(channels, **options)
    layer.weight[:], layer.bias[:] = parameters(channels)
    return layer


def test_a_new_layer_has_the_usual_starting_values():
    layer = bn.BatchNorm(4)
    assert layer.training
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    for array in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        assert array.shape == (4,)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("axis", [1, -1])
def test_training_and_evaluation_are_the_functions(dtype, axis):
    layer = affine_layer(axis=axis)
    shape = (3, 4, 5, 6) if axis == 1 else (3, 5, 6, 4)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    for seed in range(3):
        x, dy = normal(shape, dtype, seed=seed, loc=1), normal(shape, dtype, seed=seed + 9)
        y, saved = bn.batch_norm_training(
            x, layer.weight, layer.bias, running_mean=mean, running_var=var, axis=axis
        )
        assert same_bits(layer(x), y)
        expected = bn.batch_norm_backward(dy, saved)
        assert same_bits(layer.backward(dy), expected.x)
        assert same_bits(layer.running_mean, mean)
        assert same_bits(layer.running_var, var)
    assert layer.num_batches_tracked == 3
    layer.eval()
    y = bn.batch_norm_inference(x, mean, var, layer.weight, layer.bias, axis=axis)
    assert same_bits(layer(x), y)
    assert same_bits(layer.running_mean, mean)
    assert layer.num_batches_tracked == 3
    layer.train()
    assert same_bits(layer(x), bn.batch_norm_training(x, layer.weight, layer.bias, axis=axis)[0])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axis", [1, -1])
def test_backward_in_evaluation_takes_the_statistics_as_constants(dtype, axis, affine):
    layer = affine_layer(axis=axis) if affine else bn.BatchNorm(4, axis=axis, affine=False)
    layer.running_mean[:] = np.linspace(-1, 1, 4)
    layer.running_var[:] = np.linspace(0.5, 2, 4)
    shape = (3, 4, 5, 6) if axis == 1 else (3, 5, 6, 4)
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    layer.eval()
    layer(x)
    expected = reference.batch_norm_backward(
        dy,
        x,
        layer.running_mean,
        reference.invstd(layer.running_var, layer.eps),
        layer.weight if affine else None,
        axis=axis,
        training=False,
    )
    assert_close(layer.backward(dy), expected.x)
    if affine:
        assert_close(layer.weight_grad, expected.weight, dtype=np.float32)
        assert_close(layer.bias_grad, expected.bias, dtype=np.float32)


def test_gradients_of_the_parameters_are_kept():
    layer = affine_layer()
    x, dy = normal((3, 4, 5)), normal((3, 4, 5), seed=1)
    layer(x)
    layer.backward(dy)
    expected = reference.batch_norm_training(x)
    wanted = reference.batch_norm_backward(dy, x, expected.moments.mean, expected.invstd)
    assert_close(layer.weight_grad, wanted.weight)
    assert_close(layer.bias_grad, wanted.bias)


def test_without_affine_there_are_no_parameters():
    layer = bn.BatchNorm(4, affine=False)
    assert layer.weight is None
    assert layer.bias is None
    x = normal((3, 4, 5))
    assert same_bits(layer(x), bn.batch_norm_training(x)[0])


def test_without_running_statistics_evaluation_uses_those_of_the_batch():
    layer = bn.BatchNorm(4, track_running_stats=False)
    assert layer.running_mean is None
    assert layer.running_var is None
    x = normal((3, 4, 5))
    layer.eval()
    assert same_bits(layer(x), bn.batch_norm_training(x, layer.weight, layer.bias)[0])
    dy = normal((3, 4, 5), seed=1)
    saved = bn.batch_norm_training(x, layer.weight, layer.bias)[1]
    assert same_bits(layer.backward(dy), bn.batch_norm_backward(dy, saved).x)


def test_momentum_none_is_the_average_over_batches():
    layer = bn.BatchNorm(4, momentum=None)
    batches = [normal((5, 4, 7), seed=s, loc=s) for s in range(6)]
    for x in batches:
        layer(x)
    each = [reference.moments(x) for x in batches]
    mean = np.mean([m.mean for m in each], axis=0)
    var = np.mean([m.m2 / (m.count - 1) for m in each], axis=0)
    assert relative_error(layer.running_mean, mean) < 1e-6
    assert relative_error(layer.running_var, var) < 1e-6


def test_eps_and_momentum_are_the_layers_own():
    layer = bn.BatchNorm(4, eps=0.5, momentum=0.25)
    x = normal((3, 4, 5), loc=2)
    assert_close(layer(x), reference.batch_norm_training(x, eps=0.5).y)
    mean, var = reference.update_running(
        np.zeros(4), np.ones(4), reference.moments(x), momentum=0.25
    )
    assert relative_error(layer.running_mean, mean) < 1e-6
    assert relative_error(layer.running_var, var) < 1e-6


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_a_state_dict_carries_everything_to_another_layer(options):
    layer = bn.BatchNorm(4, **options)
    if layer.weight is not None:
        layer.weight[:], layer.bias[:] = parameters(4)
    for seed in range(3):
        layer(normal((3, 4, 5), seed=seed))
    state = pickle.loads(pickle.dumps(layer.state_dict()))
    other = bn.BatchNorm(4, **options)
    other.load_state_dict(state)
    x = normal((3, 4, 5), seed=7)
    for mode in ("train", "eval"):
        getattr(layer, mode)()
        getattr(other, mode)()
        assert same_bits(layer(x), other(x))
    assert set(other.state_dict()) == set(layer.state_dict())
    for name, value in layer.state_dict().items():
        assert same_bits(value, other.state_dict()[name]), name


def test_a_state_dict_has_pytorchs_names():
    assert set(bn.BatchNorm(4).state_dict()) == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_a_state_dict_is_a_snapshot_and_loading_one_copies():
    layer = bn.BatchNorm(4)
    state = layer.state_dict()
    layer(normal((3, 4, 5), loc=5))
    assert (np.asarray(state["running_mean"]) == 0).all()
    assert state["num_batches_tracked"] == 0
    layer.load_state_dict(state)
    layer(normal((3, 4, 5), loc=5))
    assert (np.asarray(state["running_mean"]) == 0).all()


BAD_STATES = {
    "missing": lambda s: s.pop("running_var"),
    "unknown": lambda s: s.update(gamma=np.ones(4)),
    "wrong_shape": lambda s: s.update(running_mean=np.zeros(5)),
    "text": lambda s: s.update(bias=np.array(["1"] * 4)),
    "complex": lambda s: s.update(bias=np.ones(4) * 1j),
    "ragged": lambda s: s.update(bias=[[1], 2, 3, 4]),
    "too_large": lambda s: s.update(weight=np.full(4, 5.0), running_var=np.full(4, 1e300)),
    "half_a_batch": lambda s: s.update(num_batches_tracked=2.5),
    "less_than_no_batch": lambda s: s.update(num_batches_tracked=-1),
    "nan_batches": lambda s: s.update(num_batches_tracked=np.nan),
    "other_keys": lambda s: s.update({1: 2}),
}


@pytest.mark.parametrize("fault", BAD_STATES)
def test_a_bad_state_dict_is_an_error_and_changes_nothing(fault):
    layer = affine_layer()
    layer(normal((3, 4, 5)))
    before = pickle.loads(pickle.dumps(layer.state_dict()))
    state = bn.BatchNorm(4).state_dict()
    BAD_STATES[fault](state)
    with pytest.raises(bn.BnnumbaError):
        layer.load_state_dict(state)
    for name, value in layer.state_dict().items():
        assert same_bits(value, before[name]), name


def test_a_state_dict_may_hold_numbers_of_any_kind():
    layer = bn.BatchNorm(2)
    state = {
        "weight": [1, 2],
        "bias": np.array([0.5, 0.25], BFLOAT16),
        "running_mean": (3.0, 4.0),
        "running_var": np.array([1, 2], np.float16),
        "num_batches_tracked": 7.0,
    }
    layer.load_state_dict(state)
    assert layer.num_batches_tracked == 7
    for name in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_array_equal(getattr(layer, name), np.array(state[name], np.float32))


@pytest.mark.parametrize("axis", ["a", None, 1.5, True])
def test_an_axis_that_is_no_integer_is_an_error(axis):
    with pytest.raises(bn.BnnumbaTypeError, match="axis: expected an integer"):
        bn.BatchNorm(4, axis=axis)


def test_an_axis_may_be_an_integer_of_numpy():
    layer = bn.BatchNorm(4, affine=False, track_running_stats=False, axis=np.int64(1))
    with pytest.raises(bn.BnnumbaValueError, match="x: expected 4 channels at axis 1, got 3"):
        layer(np.ones((4, 3, 5)))


def test_backward_before_forward_is_an_error():
    with pytest.raises(bn.BnnumbaError, match="forward"):
        bn.BatchNorm(4).backward(normal((3, 4, 5)))


def test_a_failed_forward_leaves_the_layer_as_it_was():
    layer = affine_layer()
    layer(normal((3, 4, 5)))
    before = pickle.loads(pickle.dumps(layer.state_dict()))
    with pytest.raises(bn.BnnumbaError):
        layer(normal((3, 5, 5)))
    with pytest.raises(bn.BnnumbaError):
        layer(normal((1, 4)))  # one value per channel: no unbiased variance
    for name, value in layer.state_dict().items():
        assert same_bits(value, before[name]), name


def test_an_empty_batch_is_not_counted():
    layer = bn.BatchNorm(4, momentum=None)
    layer(np.empty((0, 4, 5), np.float32))
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked == 0


def test_a_layer_says_what_it_is():
    text = repr(bn.BatchNorm(4, eps=0.25, momentum=None, affine=False))
    for part in ("BatchNorm", "4", "0.25", "None", "False"):
        assert part in text


def test_a_layer_says_which_correction_it_has():
    keras, tf_fused = (bn.CONVENTIONS[name].options() for name in ("keras", "tf_fused"))
    assert repr(bn.BatchNorm(4, **keras)) != repr(bn.BatchNorm(4, **tf_fused))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_a_copy_of_a_layer_leaves_the_last_batch_out(copied):
    layer = affine_layer()
    layer(normal((30, 4, 50)))
    assert len(pickle.dumps(layer)) < 4000
    other = copied(layer)
    for name, value in layer.state_dict().items():
        assert same_bits(value, other.state_dict()[name]), name
    with pytest.raises(bn.BnnumbaError, match="forward"):
        other.backward(normal((30, 4, 50)))
    layer.backward(normal((30, 4, 50)))


def test_running_statistics_that_do_not_fit_are_named():
    layer = affine_layer().eval()
    layer.running_mean = None
    with pytest.raises(bn.BnnumbaError, match="running_mean: "):
        layer(normal((3, 4, 5)))
