"""The adapter to PyTorch: what its own function and modules do, in autograd and around it."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest

import bnnumba as bn

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from bnnumba.adapters import torch as adapter  # noqa: E402

functional = nn.functional
SHAPES = {1: (6, 5, 7), 2: (6, 5, 7, 3), 3: (3, 5, 4, 3, 2)}
TOLERANCE = {
    torch.float32: 2e-5,
    torch.float64: 1e-11,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def close(got, expected, dtype=torch.float32):
    tolerance = TOLERANCE[dtype]
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * scale)


def pair(rank, dtype=torch.float32, **options):
    """Return PyTorch's module and ours, with the same parameters, which are not the first ones."""
    torch.manual_seed(rank)
    theirs = getattr(nn, f"BatchNorm{rank}d")(5, **options).to(dtype)
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    ours = getattr(adapter, f"BatchNorm{rank}d")(5, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batch(rank, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPES[rank], generator=generator, dtype=torch.float64) * 2 + 1
    return x.to(dtype).requires_grad_()


def gradients(module, x):
    x.grad = None
    module.zero_grad()
    module(x).pow(3).sum().backward()
    return [x.grad, *[p.grad for p in module.parameters()]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.7},
    ],
    ids=str,
)
def test_the_modules_are_those_of_pytorch(options, rank, dtype):
    theirs, ours = pair(rank, dtype, **options)
    for training in (True, False):
        for seed in range(3):
            x = batch(rank, dtype, seed)
            for module in (theirs, ours):
                module.train(training)
            close(ours(x), theirs(x), dtype)
            for got, expected in zip(gradients(ours, x), gradients(theirs, x), strict=True):
                assert got.dtype == expected.dtype
                close(got, expected, dtype)
    for (name, got), (also, expected) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert (name, got.dtype) == (also, expected.dtype)
        close(got, expected, dtype)


def test_gradients_are_those_of_finite_differences():
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64).requires_grad_()
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    running = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for training in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, w, b, training=training: adapter.batch_norm(x, *running, w, b, training, 0.0),
            (batch(2, torch.float64), weight, bias),
        )


@pytest.mark.parametrize("given", ["weight and bias", "weight", "bias", ""])
def test_weight_and_bias_are_optional_each_on_its_own(given):
    results = []
    for norm in (adapter.batch_norm, functional.batch_norm):
        x = batch(1, torch.float64)
        weight, bias = (
            torch.linspace(0.5, 2, 5, dtype=torch.float64).requires_grad_()
            if name in given
            else None
            for name in ("weight", "bias")
        )
        norm(x, None, None, weight, bias, training=True).pow(3).sum().backward()
        results.append([a.grad for a in (x, weight, bias) if a is not None])
    for got, expected in zip(*results, strict=True):
        close(got, expected, torch.float64)


@pytest.mark.parametrize("differentiable", [(0,), (1,), (2,), (0, 2), ()])
def test_only_what_wants_a_gradient_gets_one(differentiable):
    arguments = [batch(1).detach(), torch.full((5,), 2.0), torch.zeros(5)]
    for i in differentiable:
        arguments[i].requires_grad_()
    x, weight, bias = arguments
    y = adapter.batch_norm(x, None, None, weight, bias, training=True)
    assert y.requires_grad == bool(differentiable)
    if differentiable:
        y.pow(2).sum().backward()
    assert [i for i, a in enumerate(arguments) if a.grad is not None] == list(differentiable)


def test_channels_last_stays_so():
    _, ours = pair(2)
    x = batch(2).detach().to(memory_format=torch.channels_last).requires_grad_()
    y = ours(x)
    y.sum().backward()  # a gradient whose strides are 0
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return net.double()


def train(net, steps=5):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        x, target = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.randint(4, (16,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_converted_model_trains_the_same():
    plain, converted = small_net(), small_net()
    parameters = list(converted.parameters())
    calls = []
    converted[1].register_forward_hook(lambda *a: calls.append(a))
    assert adapter.convert_batch_norm(converted) is converted
    assert [type(m).__module__ for m in converted[1:6:4]] == ["bnnumba.adapters.torch"] * 2
    assert all(p is q for p, q in zip(parameters, converted.parameters(), strict=True))
    close(train(converted), train(plain), torch.float64)
    assert len(calls) == 5
    state = converted.state_dict()
    for name, expected in plain.state_dict().items():
        close(state[name], expected, torch.float64)
    plain.load_state_dict(state)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    close(converted.eval()(x), plain.eval()(x), torch.float64)


def test_what_is_converted_is_batch_norm_alone():
    class Own(nn.BatchNorm1d):
        pass

    model = nn.ModuleList([Own(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm1d(), nn.GroupNorm(1, 3)])
    kinds = [type(m) for m in model]
    assert [type(m) for m in adapter.convert_batch_norm(model)] == kinds
    alone = nn.BatchNorm3d(2)
    assert type(adapter.convert_batch_norm(alone)) is adapter.BatchNorm3d
    assert type(copy.deepcopy(alone)) is adapter.BatchNorm3d
    with pytest.raises(bn.BnnumbaTypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        adapter.convert_batch_norm(3)


def test_a_change_of_the_input_is_noticed():
    x = batch(1)
    h = x * 2
    h += adapter.batch_norm(h, None, None, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.pow(3).sum().backward()


def test_no_second_derivative_is_made_up():
    x = batch(1)
    y = adapter.batch_norm(x, None, None, training=True)
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_the_graph_can_be_kept_and_is_freed():
    x = batch(1)
    h = x * 2
    y = adapter.batch_norm(h, None, None, training=True)
    loss = y.pow(3).sum()
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)
    alive = weakref.ref(h)
    del h
    gc.collect()
    assert alive() is None, "who holds the output does not hold the input"


def test_activations_are_computed_again_under_checkpointing():
    _, ours = pair(2)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        expected = gradients(ours, batch(2))
    assert torch.Size(SHAPES[2]) in seen
    again = pair(2)[1]
    x = batch(2)
    checkpoint(again, x, use_reentrant=False).pow(3).sum().backward()
    for got, want in zip([x.grad, *[p.grad for p in again.parameters()]], expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    theirs, ours = pair(2)
    with mode():
        for training in (True, False):
            x = batch(2).detach()
            y = ours.train(training)(x)
            assert not y.requires_grad
            close(y, theirs.train(training)(x))


def test_under_autocast_the_input_keeps_its_dtype():
    theirs, ours = pair(1)
    x = batch(1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(x), theirs(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    close(got, expected, torch.bfloat16)


def test_a_compiled_model_calls_it_between_its_graphs():
    plain, converted = small_net(), adapter.convert_batch_norm(small_net())
    compiled = torch.compile(converted, backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo detected")  # where it is traced instead
        losses = train(compiled)
    close(losses, train(plain), torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((4, 3)), None, None), r"x: expected a torch\.Tensor, got ndarray"),
        ((torch.ones(4, 3, dtype=torch.int32), *(torch.ones(3),) * 2), "x: expected dtype float32"),
        ((torch.ones(4, 3), None, None), "running_mean: expected an array, as training is False"),
        ((torch.ones(4, 3), torch.ones(2), torch.ones(3)), r"running_mean: expected shape \(3,\)"),
        ((torch.ones(4, 3), torch.ones(3), torch.ones(3), [1, 2, 3]), "weight: expected an array"),
        ((torch.ones(4, 3), np.ones(3), torch.ones(3)), "running_mean: expected an array of PyT"),
    ],
    ids=["numpy", "integers", "no statistics", "shape", "list", "statistics of NumPy"],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((bn.BnnumbaTypeError, bn.BnnumbaValueError), match=message):
        adapter.batch_norm(*arguments)


def test_a_failed_call_leaves_the_buffers():
    _, ours = pair(2)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match="expected 4D input"):
        ours(torch.ones(4, 5))
    with pytest.raises(bn.BnnumbaValueError, match=r"weight: expected shape \(7,\)"):
        ours(torch.ones(4, 7, 2, 2))
    with pytest.raises(bn.BnnumbaValueError, match="running_var: expected more than 1 value"):
        ours(torch.ones(1, 5, 1, 1))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name])


def test_backward_takes_the_saved_tensors_as_hooks_give_them():
    ours = pair(2)[1].eval()  # then dx is in proportion to the weight
    x = batch(2)
    expected = gradients(ours, x)[0]
    hooks = lambda t: t, lambda t: t * 8 if t.ndim == 1 else t
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        assert torch.equal(gradients(ours, x)[0], expected * 8)


def test_tensors_that_are_yet_to_be_negated():
    theirs, ours = pair(1)
    found = []
    for module in (theirs, ours):
        x = batch(1)
        z = torch.complex(x, x).conj()
        assert z.imag.is_neg()
        y = torch.complex(module(x), module(z.imag))  # which has gradients of that kind
        (y.conj() * torch.complex(x, x).detach()).real.sum().backward()
        found.append((y.detach().real, y.detach().imag, x.grad))
    for got, expected in zip(found[1], found[0], strict=True):
        close(got, expected)


def test_what_autograd_cannot_record_leaves_the_statistics():
    _, ours = pair(2)
    before = copy.deepcopy(ours.state_dict())
    with torch.inference_mode():
        x = batch(2).detach() + 0
    with pytest.raises(bn.BnnumbaTypeError, match=r"x: .*inference mode"):
        ours(x)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name])
    grown = torch.ones(5, requires_grad=True)
    with torch.inference_mode():
        kept = torch.ones(5)
    for name, arguments in {
        "x": (x, torch.zeros(5), torch.ones(5), None, grown, True),
        "weight": (batch(2), torch.zeros(5), torch.ones(5), kept, None, True),
    }.items():
        with pytest.raises(bn.BnnumbaTypeError, match=rf"{name}: .*inference mode"):
            adapter.batch_norm(*arguments)
        assert not arguments[1].any()
    mean = torch.zeros(5, requires_grad=True)
    with pytest.raises(bn.BnnumbaTypeError, match=r"running_mean: .*requires a gradient"):
        adapter.batch_norm(batch(2), mean, torch.ones(5))
