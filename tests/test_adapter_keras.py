"""The adapter to Keras: what its own layer does on PyTorch, and the right variance."""

import inspect
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("torch")
keras = pytest.importorskip("keras")
import torch  # noqa: E402
from support import run_python  # noqa: E402

from bnnumba import reference  # noqa: E402
from bnnumba.adapters import keras as adapter  # noqa: E402

if keras.config.backend() != "torch":
    pytest.skip("Keras has another backend than PyTorch", allow_module_level=True)

SHAPES = [(6, 5), (6, 7, 5), (4, 3, 7, 5), (3, 2, 4, 3, 5)]
# Keras computes in float32 what is float64, too.
TOLERANCE = {"float32": 2e-5, "float64": 2e-5, "mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}


def pair(shape, dtype="float32", **options):
    """Return Keras's layer and ours, with the same weights, which are not the first ones."""
    theirs = keras.layers.BatchNormalization(dtype=dtype, **options)
    ours = adapter.BatchNormalization(dtype=dtype, **options)
    rng = np.random.default_rng(3)
    for layer in (theirs, ours):
        layer.build(shape)
    weights = [rng.uniform(0.5, 2, w.shape) for w in theirs.get_weights()]
    theirs.set_weights(weights)
    ours.set_weights(weights)
    return theirs, ours


def batch(shape, seed=0, dtype="float32"):
    x = np.random.default_rng(seed).normal(1, 2, shape)
    return torch.from_numpy(x.astype(dtype)).requires_grad_()


def step(layer, x, **call):
    """Return y, and the gradients of x and of the weights."""
    x.grad = None
    layer.zero_grad()
    y = layer(x, **call)
    y.pow(3).sum().backward()
    return [y, x.grad, *[v.value.grad for v in layer.trainable_variables]]


def same(got, expected, dtype="float32"):
    tolerance = TOLERANCE[dtype]
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = (v.detach().double().numpy() for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, abs(b).max()))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, "float32") for shape in SHAPES] + [(SHAPES[2], dtype) for dtype in TOLERANCE],
)
def test_steps_are_those_of_keras(shape, dtype):
    theirs, ours = pair(shape, dtype)
    for seed in range(3):
        for training in (True, False, None):
            x = batch(shape, seed, "float64" if dtype == "float64" else "float32")
            call = {"training": training}
            same(step(ours, x, **call), step(theirs, x, **call), dtype)
            same(moving(ours), moving(theirs), dtype)


def moving(layer):
    return [v.value for v in layer.non_trainable_variables]


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 1},
        {"axis": -2},
        {"center": False},
        {"scale": False},
        {"center": False, "scale": False},
        {"momentum": 0.3, "epsilon": 0.5},
        {"renorm": True},
    ],
    ids=str,
)
def test_options_are_those_of_keras(options):
    known = inspect.signature(keras.layers.BatchNormalization).parameters
    if not set(options) <= set(known):
        pytest.skip("this version of Keras is older than the option")
    shape = (4, 3, 7, 5)
    theirs, ours = pair(shape, **options)
    for training in (True, False):
        x = batch(shape)
        same(step(ours, x, training=training), step(theirs, x, training=training))
        same(moving(ours), moving(theirs))


def test_a_frozen_layer_normalizes_by_its_moving_statistics():
    theirs, ours = pair((6, 5))
    theirs.trainable = ours.trainable = False
    before = [v.clone() for v in moving(ours)]
    same([ours(batch((6, 5)), training=True)], [theirs(batch((6, 5)), training=True)])
    assert all(map(torch.equal, before, moving(ours)))


def test_masked_values_and_integers_are_left_to_keras():
    theirs, ours = pair((6, 7, 5))
    x, mask = batch((6, 7, 5)), torch.rand(6, 7) < 0.7
    same(step(ours, x, training=True, mask=mask), step(theirs, x, training=True, mask=mask))
    counts = torch.arange(30).reshape(6, 5)
    theirs, ours = pair((6, 5))
    same([ours(counts, training=True)], [theirs(counts, training=True)])


def test_an_offset_costs_no_digits():
    x = np.random.default_rng(0).normal(1e4, 1, (64, 8, 8, 3)).astype(np.float32)
    expected = reference.batch_norm_training(x.astype(np.float64), eps=1e-3, axis=-1)[0]
    y = adapter.BatchNormalization()(x, training=True).detach().numpy()
    assert np.abs(y - expected).max() < 1e-5


def network(layer):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3),
            layer(),
            keras.layers.ReLU(),
            keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3), layer()]),
        ]
    )


def fitted(model, epochs=3):
    rng = np.random.default_rng(1)
    x, y = rng.normal(2, 1, (48, 6, 6, 2)), rng.normal(0, 1, (48, 3))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    if epochs:
        model.fit(x, y, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model.predict(x, verbose=0)


def test_a_converted_model_trains_as_before():
    keras.utils.set_random_seed(0)
    plain = network(keras.layers.BatchNormalization)
    converted = keras.models.clone_model(plain)
    converted.set_weights(plain.get_weights())
    held = converted.weights
    assert adapter.convert_batch_norm(converted) is converted
    inner = converted.layers[-1].layers[-1]
    assert type(inner) is type(converted.layers[1]) is adapter.BatchNormalization
    assert all(a is b for a, b in zip(held, converted.weights, strict=True))
    np.testing.assert_allclose(fitted(converted), fitted(plain), rtol=1e-3, atol=1e-4)


def test_a_model_is_stored_and_read(tmp_path):
    model = network(adapter.BatchNormalization)
    y = fitted(model, epochs=1)
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    assert type(read.layers[1]) is adapter.BatchNormalization
    np.testing.assert_array_equal(fitted(read, epochs=0), y)
    plain = network(keras.layers.BatchNormalization)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(fitted(plain, epochs=0), y, rtol=1e-4, atol=1e-5)


def test_a_stateless_call_returns_the_moving_statistics():
    _, ours = pair((6, 5))
    before = [v.clone() for v in moving(ours)]
    trainable = [v.value for v in ours.trainable_variables]
    y, updated = ours.stateless_call(trainable, before, batch((6, 5)), training=True)
    assert all(map(torch.equal, moving(ours), before))
    expected = ours(batch((6, 5)), training=True)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, updated, moving(ours)))


def test_what_is_traced_for_an_export_is_left_to_keras():
    theirs, ours = pair((6, 5))
    model = keras.Sequential([keras.Input((5,)), ours])
    x = torch.from_numpy(np.ones((6, 5), np.float32))
    traced = torch.jit.trace(model, x)
    same([traced(x)], [theirs(x)])
    exported = torch.export.export(model.eval(), (x,))
    same([exported.module()(x)], [theirs(x)])
    with torch.inference_mode():
        kept = x + 0
    same([ours(kept, training=True)], [theirs(kept, training=True)])


def test_shapes_that_the_kernels_do_not_take_are_left_to_keras():
    theirs, ours = pair((5,), axis=0)
    same([ours(torch.ones(5))], [theirs(torch.ones(5))])
    _, ours = pair((6, 5))
    before = [v.clone() for v in moving(ours)]
    assert ours(torch.ones(0, 5), training=True).shape == (0, 5)
    assert all(map(torch.equal, before, moving(ours)))


def test_what_is_no_layer_is_named():
    with pytest.raises(TypeError, match=r"model: expected a keras.Layer or model, got Linear"):
        adapter.convert_batch_norm(torch.nn.Linear(2, 3))


@pytest.mark.skipif(find_spec("jax") is None, reason="another backend of Keras is missing")
def test_another_backend_is_named():
    code = """
        from bnnumba.adapters.keras import BatchNormalization
        BatchNormalization()
    """
    failed = run_python(code, env={"KERAS_BACKEND": "jax"}, check=False)
    assert "BackendError: keras: expected the backend torch, got jax" in failed.stderr
