"""Arrays of any library: each result comes back in the library, dtype and device of its input."""

import copy
import pickle

import numpy as np
import pytest
from support import BFLOAT16, assert_close, normal, parameters, same_bits

import bnnumba as bn


class Foreign:
    """An array of a library that bnnumba has never heard of: it speaks DLPack and no more."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __array_namespace__(self, api_version=None):
        return ForeignNamespace


class ForeignNamespace:
    """The part of the array API that makes an array of this library from another."""

    @staticmethod
    def from_dlpack(array, /, *, device=None, copy=None):
        return Foreign(np.from_dlpack(array))


class OldForeign(Foreign):
    """DLPack as it was before version 1.0: no keywords, and so no flag for read-only memory."""

    def __dlpack__(self, stream=None):
        return self._array.__dlpack__()


def torch_kind():
    torch = pytest.importorskip("torch")
    return torch.Tensor, torch.from_numpy, lambda t: t.numpy()


def jax_kind():
    jax = pytest.importorskip("jax")
    return jax.Array, jax.numpy.asarray, np.asarray


KINDS = {
    "numpy": lambda: (np.ndarray, lambda a: a, lambda a: a),
    "torch": torch_kind,
    "jax": jax_kind,
    "foreign": lambda: (Foreign, Foreign, lambda f: f._array),
    "old_foreign": lambda: (Foreign, OldForeign, lambda f: f._array),
}


def pickled(saved):
    return pickle.loads(pickle.dumps(saved))


@pytest.fixture(params=KINDS)
def kind(request):
    """The type of an array library, from NumPy to it, and back."""
    return KINDS[request.param]()


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("affine", [True, False])
def test_results_are_of_the_kind_of_the_input_and_equal_those_of_numpy(kind, axis, affine):
    cls, of_numpy, to_numpy = kind
    x, dy = normal((4, 6, 6)), normal((4, 6, 6), seed=1)
    weight, bias = parameters(6) if affine else (None, None)
    y, saved = bn.batch_norm_training(x, weight, bias, axis=axis)
    expected = [y, *bn.batch_norm_backward(dy, saved)]
    theirs = [None, None] if weight is None else [of_numpy(weight), of_numpy(bias)]
    y, saved = bn.batch_norm_training(of_numpy(x), *theirs, axis=axis)
    got = [y, *bn.batch_norm_backward(of_numpy(dy), saved)]
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    expected.append(bn.batch_norm_inference(x, mean, var, weight, bias, axis=axis))
    got.append(
        bn.batch_norm_inference(of_numpy(x), of_numpy(mean), of_numpy(var), *theirs, axis=axis)
    )
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, cls)
        assert same_bits(to_numpy(a), b)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_what_a_forward_pass_saved_can_be_copied(kind, copied):
    cls, of_numpy, to_numpy = kind
    x, dy = of_numpy(normal((4, 6, 6))), of_numpy(normal((4, 6, 6), seed=1))
    saved = bn.batch_norm_training(x, of_numpy(parameters(6)[0]))[1]
    other = copied(saved)
    assert other.moments == saved.moments
    assert np.shares_memory(to_numpy(other.x), to_numpy(x)) == (copied is copy.copy)
    for got, expected in zip(
        bn.batch_norm_backward(dy, other), bn.batch_norm_backward(dy, saved), strict=True
    ):
        assert isinstance(got, cls)
        assert same_bits(to_numpy(got), to_numpy(expected))


def test_moments_of_every_kind(kind):
    x = normal((4, 6, 6))
    m, expected = bn.moments(kind[1](x)), bn.moments(x)
    running = bn.RunningMoments(6)
    running.update(kind[1](x))
    for got in (m, running):
        assert got.count == expected.count
        assert same_bits(np.asarray(got.mean), expected.mean)
        assert same_bits(np.asarray(got.var()), expected.var())


def test_running_statistics_of_torch_are_updated_in_place():
    torch = pytest.importorskip("torch")
    x = normal((4, 6, 6), loc=2)
    mean, var = torch.zeros(6), torch.ones(6, dtype=torch.float64)[::1]
    addresses = mean.data_ptr(), var.data_ptr()
    bn.batch_norm_training(torch.from_numpy(x), running_mean=mean, running_var=var)
    expected = np.zeros(6, np.float32), np.ones(6)
    bn.batch_norm_training(x, running_mean=expected[0], running_var=expected[1])
    assert (mean.data_ptr(), var.data_ptr()) == addresses
    assert same_bits(mean.numpy(), expected[0])
    assert same_bits(var.numpy(), expected[1])


def test_out_of_torch_is_written_and_returned():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(normal((4, 6, 6)))
    out = torch.empty_like(x)
    y, saved = bn.batch_norm_training(x, out=out)
    assert y is out
    assert torch.equal(out, bn.batch_norm_training(x)[0])
    assert bn.batch_norm_backward(x, saved, out=out).x is out


def test_bfloat16_of_torch():
    torch = pytest.importorskip("torch")
    x = normal((4, 6, 6), BFLOAT16)
    tensor = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    y, saved = bn.batch_norm_training(tensor)
    expected, expected_saved = bn.batch_norm_training(x)
    assert y.dtype == torch.bfloat16
    assert same_bits(y.view(torch.int16).numpy(), expected.view(np.int16))
    dx = bn.batch_norm_backward(tensor, saved).x
    assert dx.dtype == torch.bfloat16
    wanted = bn.batch_norm_backward(x, expected_saved).x
    assert same_bits(dx.view(torch.int16).numpy(), wanted.view(np.int16))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_layouts_of_torch(layout):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(normal((4, 6, 5, 7)))
    arranged = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda: torch.cat([x, x], 3)[..., :7],
        "expanded": lambda: x[:1].expand(4, -1, -1, -1),
    }[layout]()
    y = bn.batch_norm_training(arranged)[0]
    expected = bn.batch_norm_training(np.ascontiguousarray(arranged.numpy()))[0]
    assert_close(y.numpy(), expected.astype(np.float64))


def test_a_torch_tensor_that_requires_grad_is_not_detached_in_silence():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(normal((4, 6, 6))).requires_grad_()
    with pytest.raises(bn.BnnumbaError, match="detach"):
        bn.batch_norm_training(x)
    bn.batch_norm_training(x.detach())


def test_a_numpy_subclass_comes_back_as_an_array():
    x = normal((5, 4)).view(np.matrix)
    y = bn.batch_norm_training(x)[0]
    assert isinstance(y, np.ndarray)
    assert same_bits(np.asarray(y), bn.batch_norm_training(np.asarray(x))[0])


def test_memory_mapped_input(tmp_path):
    x = normal((4, 6, 6))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same_bits(np.asarray(bn.batch_norm_training(mapped)[0]), bn.batch_norm_training(x)[0])


def test_bytes_in_the_other_order_are_an_error_that_says_so():
    with pytest.raises(bn.BnnumbaTypeError, match="byte"):
        bn.batch_norm_training(normal((4, 6)).astype(">f4"))


def test_an_array_on_another_device_is_an_error_that_names_it():
    class Elsewhere(Foreign):
        def __dlpack_device__(self):
            return (7, 0)  # Vulkan

        def __dlpack__(self, **options):
            raise BufferError

    with pytest.raises(bn.BnnumbaError, match=r"[Dd]evice|Vulkan"):
        bn.batch_norm_training(Elsewhere(normal((4, 6))))


def test_an_object_that_answers_to_every_name_is_no_array():
    class Anything:
        def __getattr__(self, name):
            return self

        def __call__(self, *arguments):
            return self

    with pytest.raises(bn.BnnumbaTypeError, match=r"x: expected an array .*, got .*Anything"):
        bn.moments(Anything())


def test_an_array_of_another_library_on_the_cpu_is_not_said_to_be_on_a_gpu():
    jax = pytest.importorskip("jax")
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: expected a numpy.ndarray, got jax"):
        bn.batch_norm_training(np.ones((4, 3)), jax.numpy.ones(3))
    x = jax.numpy.ones((4, 3))
    for name, array in {"running_mean": jax.numpy.ones(3), "out": x}.items():
        with pytest.raises(bn.BnnumbaValueError, match=f"{name}: .*JAX cannot be changed"):
            bn.batch_norm_training(x, **{name: array})


def test_float64_of_jax_stays_so_where_it_is_not_enabled():
    jax = pytest.importorskip("jax")
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        x = jax.numpy.asarray(normal((6, 3), np.float64))
    y, saved = bn.batch_norm_training(x)
    assert y.dtype == saved.mean.dtype == np.float64
    assert bn.batch_norm_backward(y, saved).x.dtype == np.float64


def test_a_tensor_of_autograd_in_bfloat16_is_named():
    torch = pytest.importorskip("torch")
    x = torch.zeros(4, 3, dtype=torch.complex64).conj().imag.to(torch.bfloat16)
    negated = torch._neg_view(x)
    with pytest.raises(bn.BnnumbaTypeError, match="x: NumPy cannot see this tensor"):
        bn.batch_norm_training(negated)


def test_a_mask_is_seen_beside_an_array_of_another_library():
    x = Foreign(normal((4, 3)))
    with pytest.raises(bn.BnnumbaTypeError, match="weight: masked arrays are not supported"):
        bn.batch_norm_training(x, np.ma.masked_array(np.ones(3), mask=[0, 1, 0]))


def test_loading_into_tensors_is_seen_by_autograd():
    torch = pytest.importorskip("torch")
    layer = bn.BatchNorm(3)
    state = layer.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(layer, name, torch.from_numpy(getattr(layer, name)))
    before = layer.weight._version
    layer.load_state_dict(state)
    assert layer.weight._version > before


def test_the_weight_of_no_grad_is_taken_by_backward_into_out_as_well():
    torch = pytest.importorskip("torch")
    x, weight = torch.randn(6, 3), torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        y, saved = bn.batch_norm_training(x, weight)
    out = torch.empty_like(x)
    assert bn.batch_norm_backward(y, saved, out=out).x is out
    assert torch.equal(out, bn.batch_norm_backward(y, saved).x)
