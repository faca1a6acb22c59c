"""Presets: a layer made from one behaves as the system that it is named for."""

import numpy as np
import pytest
from support import normal, relative_error

import bnnumba as bn
from bnnumba import reference

# How each system writes its update, with its own momentum m, and its defaults: from its sources.
# system: (new running value, m, eps, correction of the running variance)
SYSTEMS = {
    "torch": (lambda old, new, m: (1 - m) * old + m * new, 0.1, 1e-5, 1),
    "cudnn": (lambda old, new, m: (1 - m) * old + m * new, 0.1, 1e-5, 1),
    "keras": (lambda old, new, m: m * old + (1 - m) * new, 0.99, 1e-3, 0),
    "tf_fused": (lambda old, new, m: m * old + (1 - m) * new, 0.99, 1e-3, 1),
    "flax": (lambda old, new, m: m * old + (1 - m) * new, 0.99, 1e-5, 0),
    "onnx": (lambda old, new, m: m * old + (1 - m) * new, 0.9, 1e-5, 0),
}


def test_there_is_a_preset_for_every_system():
    assert set(bn.CONVENTIONS) == {*SYSTEMS, "sklearn"}


@pytest.mark.parametrize("momentum", [None, 0.25, 0.0, 1.0])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_layer_updates_its_statistics_as_the_system_does(name, momentum):
    update, default, eps, correction = SYSTEMS[name]
    options = bn.CONVENTIONS[name].options(momentum=momentum)
    assert options["eps"] == eps
    layer = bn.BatchNorm(3, dtype=np.float64, **options)
    mean, var = np.zeros(3), np.ones(3)
    theirs = default if momentum is None else momentum
    for seed in range(4):
        x = normal((6, 3, 5), np.float64, seed=seed, loc=seed)
        y = layer(x)
        m = reference.moments(x)
        mean = update(mean, m.mean, theirs)
        var = update(var, m.m2 / (m.count - correction), theirs)
        # The variance that normalizes is biased everywhere.
        expected = reference.batch_norm_training(x, eps=eps).y
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(layer.running_mean, mean) < 1e-11
    assert relative_error(layer.running_var, var) < 1e-11


def test_a_preset_takes_another_eps():
    assert bn.CONVENTIONS["keras"].options(eps=0.5)["eps"] == 0.5


def test_scikit_learn_is_a_plain_average_over_samples():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    options = bn.CONVENTIONS["sklearn"].options()
    assert options == {"momentum": None, "eps": 0.0, "correction": 0}
    scaler, running = preprocessing.StandardScaler(), bn.RunningMoments(3)
    for seed in range(3):
        chunk = normal((7 + seed, 3), np.float64, seed=seed)
        scaler.partial_fit(chunk)
        running.update(chunk)
    assert relative_error(running.var(options["correction"]), scaler.var_) < 1e-12
    y = bn.batch_norm_inference(chunk, running.mean, running.var(), eps=options["eps"])
    np.testing.assert_allclose(y, scaler.transform(chunk), rtol=1e-12, atol=1e-12)


def test_the_torch_preset_is_pytorchs_own_default():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(3)
    options = bn.CONVENTIONS["torch"].options()
    assert (options["momentum"], options["eps"]) == (theirs.momentum, theirs.eps)
    layer = bn.BatchNorm(3, **options)
    for seed in range(4):
        x = normal((6, 3, 5), seed=seed, loc=seed)
        layer(x)
        theirs(torch.from_numpy(x))
    assert relative_error(layer.running_mean, theirs.running_mean.numpy()) < 1e-6
    assert relative_error(layer.running_var, theirs.running_var.numpy()) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"momentum": -0.1}, bn.BnnumbaValueError),
        ({"momentum": 1.1}, bn.BnnumbaValueError),
        ({"momentum": float("nan")}, bn.BnnumbaValueError),
        ({"momentum": "0.1"}, bn.BnnumbaTypeError),
        ({"eps": -1.0}, bn.BnnumbaValueError),
        ({"eps": "0"}, bn.BnnumbaTypeError),
    ],
)
def test_a_wrong_value_is_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        bn.CONVENTIONS["keras"].options(**arguments)


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        bn.CONVENTIONS["keras"].momentum = 0.5


@pytest.mark.parametrize("momentum", [0.99, 0.9, 0.999, 1 - 1e-13, 1.0, 0.0])
def test_the_weight_of_the_new_value_is_what_is_left_of_one(momentum):
    ours = bn.CONVENTIONS["keras"].options(momentum=momentum)["momentum"]
    assert ours == pytest.approx(1 - momentum, rel=1e-12)
    assert len(repr(ours)) <= 7 or 0 < ours < 1e-12
