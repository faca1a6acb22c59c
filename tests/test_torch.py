"""PyTorch as the judge: the same numbers, and tensors in, tensors out."""

import copy
import pickle

import numpy as np
import pytest
from support import BFLOAT16, normal, parameters

import bnnumba as bn

torch = pytest.importorskip("torch")
functional = torch.nn.functional

# PyTorch computes in the dtype of the input (in float32 for 16 bits), so the comparison is as
# coarse as that, not as fine as the comparison with the oracle.
DTYPES = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
SHAPES = {(16, 5): "2d", (4, 5, 13): "3d", (4, 5, 6, 7): "4d", (2, 5, 3, 4, 2): "5d"}


def tensor(shape, dtype, seed=0):
    return torch.from_numpy(normal(shape, np.float64, seed=seed, loc=0.5)).to(dtype)


def array(t):
    """The same values as a NumPy array, of which bfloat16 has none of its own."""
    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).numpy().view(BFLOAT16)
    return t.numpy()


def close(got, expected, dtype, **wider):
    torch.testing.assert_close(got, expected, check_dtype=False, **{**DTYPES[dtype], **wider})


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES.get)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_is_torch_nn_functional_batch_norm(dtype, shape, training, affine):
    x = tensor(shape, dtype)
    weight, bias = (torch.from_numpy(p) for p in parameters(5)) if affine else (None, None)
    if dtype == torch.float64 and affine:
        weight, bias = weight.double(), bias.double()
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    running = torch.linspace(-1, 1, 5, dtype=statistics), torch.linspace(1, 2, 5, dtype=statistics)
    theirs = [r.clone() for r in running]
    expected = functional.batch_norm(x, *theirs, weight, bias, training, 0.3, 1e-3)
    y = bn.batch_norm(x, *running, weight, bias, training, 0.3, 1e-3)
    assert type(y) is torch.Tensor
    assert y.dtype == dtype
    close(y, expected, dtype)
    for ours, other in zip(running, theirs, strict=True):
        close(ours, other, statistics)


@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_in_training(dtype, memory_format):
    x = tensor((4, 5, 6, 7), dtype).to(memory_format=getattr(torch, memory_format))
    dy = tensor((4, 5, 6, 7), dtype, seed=1).to(memory_format=getattr(torch, memory_format))
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.from_numpy(p).to(parameter) for p in parameters(5))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True).backward(dy)
    y, saved = bn.batch_norm_training(x, weight, bias)
    assert y.is_contiguous(memory_format=getattr(torch, memory_format))
    gradients = bn.batch_norm_backward(dy, saved)
    for got, leaf in zip(gradients, leaves, strict=True):
        assert type(got) is torch.Tensor
        assert got.dtype == leaf.grad.dtype
        scale = float(leaf.grad.abs().max())
        close(got / scale, leaf.grad / scale, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_in_evaluation(dtype):
    x, dy = tensor((4, 5, 6, 7), dtype), tensor((4, 5, 6, 7), dtype, seed=1)
    theirs = torch.nn.BatchNorm2d(5).to(torch.float64 if dtype == torch.float64 else torch.float32)
    ours = bn.BatchNorm(5, dtype=np.float64 if dtype == torch.float64 else np.float32)
    weight, bias = parameters(5)
    mean, var = np.linspace(-1, 1, 5), np.linspace(1, 2, 5)
    with torch.no_grad():
        for name, value in [("weight", weight), ("bias", bias)]:
            getattr(theirs, name).copy_(torch.from_numpy(value))
            getattr(ours, name)[:] = value
        for name, value in [("running_mean", mean), ("running_var", var)]:
            getattr(theirs, name).copy_(torch.from_numpy(value))
            getattr(ours, name)[:] = value
    theirs.eval()
    ours.eval()
    leaf = x.clone().requires_grad_()
    theirs(leaf).backward(dy)
    ours(array(x))
    dx = ours.backward(array(dy)).astype(np.float64)
    scale = float(leaf.grad.abs().max())
    close(torch.from_numpy(dx / scale), leaf.grad / scale, dtype)
    for got, expected in [
        (ours.weight_grad, theirs.weight.grad),
        (ours.bias_grad, theirs.bias.grad),
    ]:
        scale = float(expected.abs().max())
        close(torch.as_tensor(got) / scale, expected / scale, dtype)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_running_statistics_after_several_batches(momentum):
    theirs, ours = torch.nn.BatchNorm1d(5, momentum=momentum), bn.BatchNorm(5, momentum=momentum)
    for seed in range(7):
        x = tensor((9, 5, 11), torch.float32, seed) * (seed + 1)
        close(torch.from_numpy(ours(x.numpy())), theirs(x).detach(), torch.float32)
        assert ours.num_batches_tracked == int(theirs.num_batches_tracked)
        for name in ("running_mean", "running_var"):
            close(torch.as_tensor(getattr(ours, name)), getattr(theirs, name), torch.float32)


def test_a_state_dict_goes_over_to_pytorch_and_back():
    theirs, ours = torch.nn.BatchNorm1d(5), bn.BatchNorm(5)
    theirs(tensor((9, 5, 11), torch.float32))
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(parameters(5)[0]))
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    x = tensor((9, 5, 11), torch.float32, 1)
    theirs.eval()
    ours.eval()
    close(torch.from_numpy(ours(x.numpy())), theirs(x).detach(), torch.float32)
    back = torch.nn.BatchNorm1d(5)
    back.load_state_dict({k: torch.as_tensor(np.asarray(v)) for k, v in ours.state_dict().items()})
    back.eval()
    assert torch.equal(back(x), theirs(x))


def test_a_constant_channel():
    x = torch.full((3, 2, 4), 0.5)
    weight, bias = (torch.from_numpy(p) for p in parameters(2))
    expected = functional.batch_norm(x, None, None, weight, bias, training=True)
    y, saved = bn.batch_norm_training(x, weight, bias)
    close(y, expected, torch.float32)
    assert torch.equal(y, bias[None, :, None].expand(3, 2, 4))
    close(saved.invstd, torch.full((2,), 1e-5**-0.5), torch.float32)


def test_fold_batch_norm_is_what_torch_fuses():
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    rng = np.random.default_rng(0)
    conv_weight, conv_bias = rng.standard_normal((6, 3, 3, 3)), rng.standard_normal(6)
    mean, var = rng.standard_normal(6), rng.uniform(0.5, 2, 6)
    arguments = [torch.from_numpy(a) for a in (conv_weight, conv_bias, mean, var)]
    weight, bias = (torch.from_numpy(p).double() for p in parameters(6))
    expected = fuse_conv_bn_weights(*arguments, 1e-5, weight, bias)
    got = bn.fold_batch_norm(*arguments, weight, bias, 1e-5)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is torch.Tensor
        close(a, b.detach(), torch.float64)


def test_a_layer_with_tensors_saves_and_loads():
    layer = bn.BatchNorm(3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(layer, name, torch.from_numpy(getattr(layer, name)))
    assert isinstance(layer(torch.randn(8, 3)), torch.Tensor)
    state = layer.state_dict()
    assert isinstance(state["running_mean"], torch.Tensor)
    layer(torch.randn(8, 3))
    assert not torch.equal(state["running_mean"], layer.running_mean), "a snapshot"
    layer.load_state_dict(state)
    assert torch.equal(state["running_mean"], layer.running_mean)
    assert layer.num_batches_tracked == 1
    theirs = torch.nn.BatchNorm1d(3).bfloat16()
    layer.load_state_dict(theirs.state_dict())
    assert torch.equal(layer.weight, theirs.weight.detach().float())


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.ones(4, 3).to(torch.float8_e4m3fn),
        lambda: torch.ones(4, 3, dtype=torch.complex64).conj().imag,
    ],
    ids=["float8", "negated"],
)
def test_a_tensor_that_numpy_cannot_see_is_an_error(tensor):
    with pytest.raises(bn.BnnumbaTypeError, match="x: "):
        bn.moments(tensor())


def test_autograd_is_told_what_is_written_to():
    x = torch.randn(8, 5)
    out, mean, var = torch.empty_like(x), torch.zeros(5), torch.ones(5)
    bn.batch_norm_training(x, running_mean=mean, running_var=var, out=out)
    assert (out._version, mean._version, var._version, x._version) == (1, 1, 1, 0)
    bn.batch_norm_inference(x, mean, var, out=out)
    _, saved = bn.batch_norm_training(x)
    bn.batch_norm_backward(x, saved, out=out)
    bn.update_running(mean, var, saved.moments)
    assert (out._version, mean._version, var._version, x._version) == (3, 2, 2, 0)
    with torch.inference_mode():
        bn.batch_norm_training(x, out=torch.empty_like(x))  # which has no version


def test_parameters_are_taken_as_they_are_where_nothing_is_differentiated():
    x, weight = tensor((4, 5, 6), torch.float32), torch.nn.Parameter(torch.full((5,), 2.0))
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: .*requires a gradient"):
        bn.batch_norm_training(x, weight)
    with torch.no_grad():
        y, _ = bn.batch_norm_training(x, weight)
    assert not y.requires_grad
    close(y, bn.batch_norm_training(x, weight.detach())[0], torch.float32)


def test_what_was_saved_of_a_tensor_of_autograds_can_be_copied():
    x = tensor((8, 3), torch.float32).requires_grad_()
    with torch.no_grad():
        y, saved = bn.batch_norm_training(x)
    expected = bn.batch_norm_backward(y, saved).x
    for made in (copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert torch.equal(bn.batch_norm_backward(y, made).x, expected)


def test_evaluation_by_running_statistics_that_are_no_longer_kept_or_no_more_there():
    x, later = tensor((8, 5), torch.float32), tensor((8, 5), torch.float32, seed=1)
    for change in ({"track_running_stats": False}, {"running_mean": None, "running_var": None}):
        theirs, ours = torch.nn.BatchNorm1d(5), bn.BatchNorm(5)
        theirs(x), ours(x.numpy())
        for layer in (theirs, ours):
            for name, value in change.items():
                setattr(layer, name, value)
        for mode in (True, False):  # which moves nothing, however often
            theirs.train(mode), ours.train(mode)
            for _ in range(2):
                close(torch.from_numpy(ours(later.numpy())), theirs(later), torch.float32)
        assert list(theirs.state_dict()) == list(ours.state_dict())
        for name, value in theirs.state_dict().items():
            if name != "num_batches_tracked":  # PyTorch counts where there is nothing to move
                close(torch.as_tensor(ours.state_dict()[name]), value, torch.float32)
