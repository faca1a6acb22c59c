"""The tests of the Python functions, run on the C library; and both compared to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import test_functional
import test_gradients
import test_moments
from capi_support import needs
from support import DTYPES, LAYOUTS, normal, parameters, run_python, same_bits

import bnnumba as bn

capi_backend = pytest.importorskip("capi_backend", reason="cffi is not installed")
pytestmark = [pytest.mark.slow, needs("cc", "make")]

# What is about Python's own objects.
LEFT_OUT = {
    "test_a_copy_of_what_was_saved_knows_that_x_was_written_over",
    "test_a_deep_copy_of_what_was_saved_has_the_weight_that_it_shows",
    "test_a_failed_update_leaves_running_moments_as_they_were",
    "test_a_negative_m2_is_not_taken",
    "test_a_number_of_channels_beyond_any_array_is_named",
    "test_a_rest_that_no_rounding_left_is_refused",
    "test_a_state_dict_restores_running_moments_exactly",
    "test_a_state_is_loaded_from_a_file_of_arrays",
    "test_a_stream_far_from_zero_keeps_its_variance",  # in C: capi/tests/test_handles.c
    "test_an_out_between_the_rows_of_x_does_not_spoil_the_backward_pass",
    "test_an_out_over_a_parameter_that_is_converted_is_an_error",
    "test_arrays_over_memory_of_no_array_overlap_as_others_do",
    "test_batch_norm_in_training_needs_no_running_statistics",
    "test_batch_norm_is_training_or_inference_by_its_flag",
    "test_dx_may_be_written_over_x_once",
    "test_evaluation",
    "test_moments_of_what_is_no_number_are_an_error",
    "test_moments_survive_every_pickle",
    "test_running_moments_survive_pickling",
}


@pytest.fixture(autouse=True)
def _c_library(request, monkeypatch):
    if request.function.__module__ != __name__:
        for public in capi_backend.PUBLIC:
            monkeypatch.setattr(bn, public.__name__, public)


for module in (test_functional, test_gradients, test_moments):
    for name, value in vars(module).items():
        if name.startswith("test_") and name not in LEFT_OUT and callable(value):
            globals()[f"{name}_in_c"] = value


SHAPES = [(3, 5, 7), (2, 17, 1), (37, 9), (40, 3, 53, 50), (20_003, 33), (8, 64, 32, 32)]


def differences(dtype, shape, layout="contiguous"):
    """Return the names of all results in which C and Python differ by a bit."""
    x = LAYOUTS[layout](normal(shape, dtype, seed=1, loc=3))
    dy = normal(shape, dtype, seed=2)
    weight, bias = parameters(shape[1], np.float32)
    results = []
    for functions in (bn, capi_backend):
        mean, var = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
        y, saved = functions.batch_norm_training(
            x, weight, bias, running_mean=mean, running_var=var, momentum=0.3
        )
        gradients = functions.batch_norm_backward(dy, saved)
        inference = functions.batch_norm_inference(x, mean, var, weight, bias)
        m = functions.moments(x)
        running = functions.RunningMoments(shape[1])
        running.update(x)
        running.update(dy)
        kernel = normal((shape[1], 3), seed=3)
        folded = functions.fold_batch_norm(kernel, weight, mean, var, weight, bias)
        results.append(
            {
                "y": y, "saved.m2": saved.moments.m2, "saved.mean": saved.moments.mean,
                "saved.invstd": saved.invstd, "dx": gradients.x, "dweight": gradients.weight,
                "dbias": gradients.bias, "running_mean": mean, "running_var": var,
                "inference": inference, "mean": m.mean, "m2": m.m2, "count": m.count,
                "streamed mean": running.mean, "streamed m2": running.moments.m2,
                "folded weight": folded[0], "folded bias": folded[1],
            }
        )  # fmt: skip
    python, c = results
    return [key for key in python if not same_bits(python[key], c[key])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_have_the_bits_of_the_python_package(dtype, shape):
    assert differences(dtype, shape) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_arrays_give_the_bits_of_the_python_package(layout):
    if layout == "unaligned":
        pytest.skip("DLPack cannot say it: NumPy's strides of an element and a part")
    assert differences(np.float32, (6, 5, 8, 9), layout) == []


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_every_level_of_the_cpu_gives_the_bits_that_python_gives_on_it(level):
    code = """
        import sys
        import numpy as np
        import capi_backend
        from test_capi_backend import differences
        if capi_backend.ffi.string(capi_backend.library().bnnumba_isa()).decode() == "none":
            sys.exit(77)
        for shape in ((3, 5, 7), (37, 9), (40, 3, 53, 50)):
            assert differences(np.dtype(np.float32), shape) == []
    """
    env = {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": "", "BNNUMBA_ISA": level}
    process = run_python(code, env=env, timeout=900, check=False)
    if process.returncode == 77:
        pytest.skip(f"this CPU is none of {level}")
    assert process.returncode == 0, process.stderr


def test_the_dtypes_are_those_of_the_package():
    assert sorted(capi_backend.DTYPES) == sorted(str(dtype) for dtype in DTYPES)
