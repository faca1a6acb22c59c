"""Bad input: the kind of error, a message that helps, and nothing written."""

import re

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from support import normal, same_bits

import bnnumba as bn

TYPE, VALUE = bn.BnnumbaTypeError, bn.BnnumbaValueError
C = 4


def x():
    return normal((3, C, 6))


def ones(n=C, dtype=np.float32):
    return np.ones(n, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def saved():
    return bn.batch_norm_training(x(), ones(), ones())[1]


# Good arguments of every function; each case below spoils one or two of them.
GOOD = {
    "batch_norm_training": lambda: {
        "x": x(),
        "weight": ones(),
        "bias": ones(),
        "running_mean": np.zeros(C),
        "running_var": ones(dtype=np.float64),
    },
    "batch_norm_inference": lambda: {
        "x": x(),
        "mean": ones(),
        "var": ones(),
        "weight": ones(),
        "bias": ones(),
    },
    "batch_norm_backward": lambda: {"grad_output": x(), "saved": saved()},
    "batch_norm": lambda: {
        "x": x(),
        "running_mean": np.zeros(C, np.float32),
        "running_var": ones(),
        "weight": ones(),
        "bias": ones(),
        "training": True,
    },
    "moments": lambda: {"x": x()},
    "update_running": lambda: {
        "running_mean": np.zeros(C),
        "running_var": ones(dtype=np.float64),
        "m": bn.moments(x()),
    },
    "fold_batch_norm": lambda: {
        "conv_weight": normal((C, 3, 5, 5)),
        "conv_bias": ones(),
        "running_mean": np.zeros(C, np.float32),
        "running_var": ones(),
        "weight": ones(),
        "bias": ones(),
        "eps": 1e-5,
    },
}


def cases():
    """Yield (function, id, arguments to spoil, error, words that the message must contain)."""
    data = {  # every function that takes data, and what the argument is called
        "batch_norm_training": "x",
        "batch_norm_inference": "x",
        "batch_norm": "x",
        "moments": "x",
        "batch_norm_backward": "grad_output",
    }
    for function, name in data.items():
        yield function, "list", {name: lambda: x().tolist()}, TYPE, [name, "list", "np.asarray"]
        yield function, "none", {name: lambda: None}, TYPE, [name, "None"]
        yield function, "number", {name: lambda: 1.5}, TYPE, [name, "float"]
        for dtype in ("int32", "int64", "uint8", "bool", "complex64", "longdouble", "object"):
            shown = str(np.dtype(dtype))
            yield function, dtype, {name: lambda d=dtype: x().astype(d)}, TYPE, [name, shown]
        yield function, "text", {name: lambda: x().astype(str)}, TYPE, [name]
        yield function, "masked", {name: lambda: np.ma.array(x(), mask=True)}, TYPE, [name, "mask"]
        if function != "batch_norm_backward":
            yield function, "rank_1", {name: lambda: ones(6)}, VALUE, [name, "1"]
            yield function, "rank_0", {name: lambda: np.array(1, np.float32)}, VALUE, [name, "0"]
    for function in ("batch_norm_training", "batch_norm_inference", "moments"):
        for axis in (3, -4, 2**40):
            yield (
                function,
                f"axis_{axis}",
                {"axis": lambda a=axis: a},
                VALUE,
                ["axis", str(axis), "3"],
            )
        yield function, "axis_float", {"axis": lambda: 1.0}, TYPE, ["axis", "float"]
        yield function, "axis_text", {"axis": lambda: "1"}, TYPE, ["axis", "str"]
        yield function, "axis_none", {"axis": lambda: None}, TYPE, ["axis", "None"]

    vectors = {  # every function that takes one value per channel, and what those are called
        "batch_norm_training": ["weight", "bias", "running_mean", "running_var"],
        "batch_norm_inference": ["mean", "var", "weight", "bias"],
        "batch_norm": ["running_mean", "running_var", "weight", "bias"],
        "update_running": ["running_mean", "running_var"],
        "fold_batch_norm": ["conv_bias", "running_mean", "running_var", "weight", "bias"],
    }
    for function, names in vectors.items():
        for name in names:
            yield function, f"{name}_long", {name: lambda: ones(C + 1)}, VALUE, [name, "4", "5"]
            yield function, f"{name}_one", {name: lambda: ones(1)}, VALUE, [name, "4", "1"]
            two = {name: lambda: np.ones((1, C), np.float32)}
            yield function, f"{name}_rank_2", two, VALUE, [name, "4", "(1, 4)"]
            yield function, f"{name}_list", {name: lambda: [1.0] * C}, TYPE, [name, "list"]
            yield (
                function,
                f"{name}_int",
                {name: lambda: ones(dtype=np.int64)},
                TYPE,
                [name, "int64"],
            )
    for function in ("batch_norm_training", "batch_norm", "update_running"):
        for name in ("running_mean", "running_var"):
            frozen = {name: lambda: read_only(ones())}
            yield function, f"{name}_read_only", frozen, VALUE, [name, "read-only"]
    for name in ("mean", "var"):
        yield "batch_norm_inference", f"{name}_none", {name: lambda: None}, TYPE, [name, "None"]
    for name in ("running_mean", "running_var"):
        missing = {name: lambda: None, "training": lambda: False}
        yield "batch_norm", f"{name}_none", missing, (TYPE, VALUE), [name]

    for function in (
        "batch_norm_training",
        "batch_norm_inference",
        "batch_norm",
        "fold_batch_norm",
    ):
        for eps in (-1e-5, float("nan"), float("inf"), -float("inf")):
            yield function, f"eps_{eps}", {"eps": lambda e=eps: e}, VALUE, ["eps", str(eps)]
        yield function, "eps_text", {"eps": lambda: "1e-5"}, TYPE, ["eps", "str"]
        yield function, "eps_none", {"eps": lambda: None}, TYPE, ["eps", "None"]
    for function in ("batch_norm_training", "batch_norm", "update_running"):
        yield function, "momentum_text", {"momentum": lambda: "0.1"}, TYPE, ["momentum", "str"]
        yield function, "momentum_nan", {"momentum": lambda: np.nan}, VALUE, ["momentum", "nan"]
    for function in ("batch_norm_training", "update_running"):
        text = {"correction": lambda: "1"}
        yield function, "correction_text", text, TYPE, ["correction", "str"]
        nan = {"correction": lambda: np.nan}
        yield function, "correction_nan", nan, VALUE, ["correction", "nan"]

    one = {"x": lambda: x()[:1, :, :1]}
    for function in ("batch_norm_training", "batch_norm"):
        yield function, "one_value", one, VALUE, ["running_var", "more than 1", "got 1"]
    big = {"correction": lambda: 18}
    yield "batch_norm_training", "correction_is_count", big, VALUE, ["correction", "18"]
    yield "update_running", "correction_is_count", big, VALUE, ["correction", "18"]
    yield "update_running", "not_moments", {"m": lambda: x()}, TYPE, ["m", "Moments", "ndarray"]

    for function in ("batch_norm_training", "batch_norm", "update_running"):
        both = {}

        def first(_both=both):
            return _both.setdefault("memory", np.ones(C))

        same = {"running_mean": first, "running_var": first}
        yield function, "one_array", same, VALUE, ["running_var", "overlap", "running_mean"]
        repeated = {"running_mean": lambda: as_strided(np.ones(1), (C,), (0,), writeable=True)}
        yield function, "repeated", repeated, VALUE, ["running_mean", "overlap", "(0,)"]
    yield "update_running", "no_mean", {"running_mean": lambda: None}, TYPE, ["running_mean"]
    yield "update_running", "no_var", {"running_var": lambda: None}, TYPE, ["running_var", "None"]
    for name, value, words in [("eps", 10**400, ["inf"]), ("axis", True, ["integer", "bool"])]:
        kind = TYPE if name == "axis" else VALUE
        beyond = {name: lambda value=value: value}
        yield "batch_norm_training", f"{name}_{type(value).__name__}", beyond, kind, [name, *words]

    out = {
        "batch_norm_training": "x",
        "batch_norm_inference": "x",
        "batch_norm_backward": "grad_output",
    }
    for function, name in out.items():
        for label, value, error, words in OUT:
            yield function, f"out_{label}", {"out": value}, error, ["out", *words]
        both = {}  # a longer array that holds the input and a shifted out

        def overlapping(_both=both):
            _both["memory"] = normal((4, C, 6))
            return _both["memory"][:3]

        def shifted(_both=both):
            return _both["memory"][1:]

        yield (
            function,
            "out_overlaps",
            {name: overlapping, "out": shifted},
            VALUE,
            ["out", "overlap"],
        )

    for function, names in {
        "batch_norm_training": ("weight", "bias", "running_mean", "running_var"),
        "batch_norm_inference": ("weight", "bias", "mean", "var"),
    }.items():
        for name in names:
            both = {}

            def inside(_both=both):
                _both["memory"] = normal((3, C, 6))
                return _both["memory"].ravel()[5 : 5 + C]

            def around(_both=both):
                return _both["memory"]

            spoiled = {name: inside, "out": around}
            yield function, f"out_overlaps_{name}", spoiled, VALUE, ["out", "overlap", name]

    for label, value, words in [
        ("longer", lambda: normal((4, C, 6)), ["(3, 4, 6)", "(4, 4, 6)"]),
        ("transposed", lambda: normal((3, 6, C)), ["(3, 4, 6)", "(3, 6, 4)"]),
        ("flat", lambda: normal((3, C * 6)), ["(3, 4, 6)", "(3, 24)"]),
    ]:
        yield "batch_norm_backward", label, {"grad_output": value}, VALUE, ["grad_output", *words]
    other = {"grad_output": lambda: x().astype(np.float64)}
    words = ["grad_output", "float32", "float64"]
    yield "batch_norm_backward", "other_dtype", other, TYPE, words
    for label, value in [("array", x), ("none", lambda: None), ("tuple", lambda: (1, 2))]:
        yield "batch_norm_backward", f"saved_{label}", {"saved": value}, TYPE, ["saved"]

    for label, value, error in [
        ("list", lambda: [[1.0]], TYPE),
        ("int", lambda: np.ones((C, 3, 5, 5), np.int32), TYPE),
        ("rank_0", lambda: np.array(1, np.float32), VALUE),
    ]:
        yield "fold_batch_norm", f"conv_{label}", {"conv_weight": value}, error, ["conv_weight"]


OUT = [
    ("shape", lambda: np.empty((3, C, 7), np.float32), VALUE, ["(3, 4, 6)", "(3, 4, 7)"]),
    ("dtype", lambda: np.empty((3, C, 6), np.float64), TYPE, ["float32", "float64"]),
    ("read_only", lambda: read_only(np.empty((3, C, 6), np.float32)), VALUE, ["read-only"]),
    ("list", lambda: [0.0], TYPE, ["list"]),
    (
        "self_overlap",
        lambda: as_strided(np.zeros(6, np.float32), (3, C, 6), (0, 0, 4)),
        VALUE,
        ["overlap"],
    ),
    (
        "sliding_windows",
        lambda: as_strided(np.zeros(88, np.float32), (3, C, 6), (96, 16, 4)),
        VALUE,
        ["overlap"],
    ),
]
CASES = list(cases())


def snapshot(arguments):
    return {
        name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)
    }


@pytest.mark.parametrize(
    ("function", "spoiled", "error", "words"),
    [(function, spoiled, error, words) for function, _, spoiled, error, words in CASES],
    ids=[f"{function}-{label}" for function, label, *_ in CASES],
)
def test_bad_input_is_named_and_nothing_is_written(function, spoiled, error, words):
    arguments = GOOD[function]()
    arguments.update({name: make() for name, make in spoiled.items()})
    before = snapshot(arguments)
    with pytest.raises(error) as caught:
        getattr(bn, function)(**arguments)
    for word in words:
        assert re.search(rf"(?<![A-Za-z_]){re.escape(word)}", str(caught.value)), (
            f"{word!r} is missing from: {caught.value}"
        )
    for name, value in before.items():
        assert same_bits(arguments[name], value), f"{name} was written"


@pytest.mark.parametrize("function", GOOD)
def test_the_good_arguments_are_good(function):
    getattr(bn, function)(**GOOD[function]())


def test_an_out_of_interleaved_strides_is_written():
    data, memory = normal((3, 2)), np.zeros(20, np.float32)
    out = as_strided(memory, (3, 2), (16, 24))  # elements 0, 4, 8 and 6, 10, 14
    assert bn.batch_norm_training(data, out=out)[0] is out
    assert same_bits(out, bn.batch_norm_training(data)[0])
    assert np.count_nonzero(memory) == data.size


def test_one_value_per_channel_is_fine_where_no_running_variance_needs_it():
    one = x()[:1, :, :1]
    bn.batch_norm_training(one)
    bn.batch_norm_training(one, running_mean=ones(), running_var=ones(), correction=0)


CLASSES = [
    ("features_text", lambda: bn.RunningMoments("4"), TYPE, "num_features"),
    ("features_float", lambda: bn.RunningMoments(4.5), TYPE, "num_features"),
    ("features_negative", lambda: bn.RunningMoments(-1), VALUE, "num_features"),
    ("update_channels", lambda: bn.RunningMoments(5).update(x()), VALUE, "5"),
    (
        "update_axis_of_channels",
        lambda: bn.RunningMoments(6).update(x()),
        VALUE,
        r"x: expected 6 channels at axis 1, got 4 \(shape \(3, 4, 6\)\)",
    ),
    ("state_kind", lambda: bn.RunningMoments(C).load_state_dict(None), TYPE, "dict, got NoneType"),
    ("update_list", lambda: bn.RunningMoments(C).update([[1.0]]), TYPE, "np.asarray"),
    ("update_axis", lambda: bn.RunningMoments(C).update(x(), axis=3), VALUE, "axis"),
    ("merge_size", lambda: bn.RunningMoments(C).merge(bn.RunningMoments(5)), VALUE, "5"),
    (
        "masked_mean",
        lambda: bn.Moments(3, np.ma.masked_array([1.0, 2.0], [1, 0]), x()),
        TYPE,
        "mask",
    ),
    ("layer_dtype", lambda: bn.BatchNorm(C, dtype="cheese"), TYPE, "dtype"),
    ("merge_kind", lambda: bn.RunningMoments(C).merge(x()), TYPE, "ndarray"),
    ("moments_size", lambda: bn.moments(x()).merge(bn.moments(x()[:, :2])), VALUE, "2"),
    ("moments_kind", lambda: bn.moments(x()).merge(3), TYPE, "int"),
    ("layer_text", lambda: bn.BatchNorm("4"), TYPE, "num_features"),
    ("layer_negative", lambda: bn.BatchNorm(-1), VALUE, "num_features"),
    ("layer_eps", lambda: bn.BatchNorm(C, eps=-1), VALUE, "eps"),
    ("layer_channels", lambda: bn.BatchNorm(5)(x()), VALUE, "5"),
    ("layer_list", lambda: bn.BatchNorm(C)([[1.0]]), TYPE, "np.asarray"),
]


@pytest.mark.parametrize(
    ("call", "error", "word"), [c[1:] for c in CLASSES], ids=[c[0] for c in CLASSES]
)
def test_classes_refuse_bad_input_too(call, error, word):
    with pytest.raises(error, match=word):
        call()


def test_every_error_is_a_bnnumba_error_and_the_builtin_one_would_expect():
    assert issubclass(bn.BnnumbaTypeError, TypeError)
    assert issubclass(bn.BnnumbaValueError, ValueError)
    assert issubclass(bn.BackendError, RuntimeError)
    for kind in (bn.BnnumbaTypeError, bn.BnnumbaValueError, bn.BackendError):
        assert issubclass(kind, bn.BnnumbaError)


def test_arrays_of_two_libraries_do_not_mix():
    torch = pytest.importorskip("torch")
    with pytest.raises(TYPE, match="weight"):
        bn.batch_norm_training(x(), torch.ones(C))
    with pytest.raises(TYPE, match="weight"):
        bn.batch_norm_training(torch.from_numpy(x()), ones())
    with pytest.raises(TYPE, match="grad_output"):
        bn.batch_norm_backward(torch.from_numpy(x()), saved())
    with pytest.raises(TYPE, match="out"):
        bn.batch_norm_training(x(), out=torch.empty(3, C, 6))


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("other", ["x", "weight", "bias"])
def test_running_statistics_apart_from_all_else(statistic, other):
    x, weight, bias = normal((C, C)), np.ones(C, np.float32), np.zeros(C, np.float32)
    memory = {"x": x[1], "weight": weight, "bias": bias}[other]
    before = memory.copy()
    with pytest.raises(bn.BnnumbaValueError, match=f"{statistic}: must not overlap {other}"):
        bn.batch_norm_training(x, weight, bias, **{statistic: memory})
    np.testing.assert_array_equal(memory, before)


def test_running_statistics_are_not_those_that_they_are_updated_with():
    m, zeros = bn.Moments(3, np.ones(C), np.ones(C)), np.zeros(C)
    with pytest.raises(bn.BnnumbaValueError, match=r"running_var: must not overlap m\.m2"):
        bn.update_running(zeros, m.m2, m)
    with pytest.raises(bn.BnnumbaValueError, match=r"running_mean: must not overlap m\.mean"):
        bn.update_running(m.mean, zeros, m)


@pytest.mark.parametrize("name", ["eps", "momentum", "correction"])
def test_a_bool_is_no_number(name):
    with pytest.raises(bn.BnnumbaTypeError, match=f"{name}: expected a real number, got bool"):
        bn.batch_norm_training(normal((3, C)), **{name: True})


def test_hints_in_errors():
    with pytest.raises(bn.BnnumbaValueError, match=r"x: .*values of one channel are x\[:, None\]"):
        bn.moments(np.ones(5))
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: .* native byte order"):
        bn.batch_norm_training(normal((3, C)), np.ones(C, ">f4"))

    class Frame:
        shape = (3, C)

        def to_numpy(self):
            raise AssertionError

    for call in (bn.moments, bn.BatchNorm(C)):
        with pytest.raises(bn.BnnumbaTypeError, match=r"x: .*Frame; use x.to_numpy\(\)"):
            call(Frame())
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: .*Frame; use weight.to_numpy\(\)"):
        bn.batch_norm_training(normal((3, C)), Frame())
    with pytest.raises(bn.BnnumbaTypeError, match=r"conv_weight: .* native byte order"):
        bn.fold_batch_norm(np.ones((C, 2), ">f4"), None, ones(), ones(), None, None)
    with pytest.raises(bn.BnnumbaTypeError, match="x: expected an array"):
        bn.BatchNorm(C)(np.ndarray)
    with pytest.raises(bn.BnnumbaTypeError, match="dtype: expected float32 or float64, got None"):
        bn.BatchNorm(C, dtype=None)
