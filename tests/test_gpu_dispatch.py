"""GPU arrays where there is no GPU: what an error says, and how arrays of any library are taken."""

import importlib.util
import sys

import numpy as np
import pytest
from support import normal, run_python
from test_gpu_simulated import run_simulated

import bnnumba as bn


class Interface:
    """As little of a GPU array as dispatch looks at."""

    def __init__(self, *shape):
        self.shape = shape

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "<f4", "data": (4096, False), "version": 3}


class Capsule:
    def __dlpack__(self, **options):
        raise AssertionError

    def __dlpack_device__(self):
        return 2, 0


def torch_tensor(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return torch.zeros(4, 3, 8)


GPU_ARRAYS = {
    "interface": lambda monkeypatch: Interface(4, 3, 8),
    "DLPack": lambda monkeypatch: Capsule(),
    "torch": torch_tensor,
}


@pytest.mark.parametrize("kind", GPU_ARRAYS)
def test_without_numba_cuda_the_error_says_what_to_install(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "bnnumba.gpu.arrays", None)
    x = GPU_ARRAYS[kind](monkeypatch)
    for function in (bn.moments, bn.batch_norm_training, bn.RunningMoments(3).update):
        with pytest.raises(bn.BackendError, match=r"x: .*on a GPU.*pip install .bnnumba\[cu13\]'"):
            function(x)


@pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)
def test_without_a_driver_the_error_says_so(monkeypatch):
    driver = pytest.importorskip("bnnumba.gpu.driver")
    if driver.SIMULATED:
        pytest.skip("the simulator needs no driver")

    def fails(flags):
        raise RuntimeError("no libcuda")

    monkeypatch.setattr(driver.cuda, "cuInit", fails)
    monkeypatch.setattr(driver, "_devices", {})
    with pytest.raises(bn.BackendError, match="CUDA driver does not start: no libcuda"):
        bn.moments(Interface(4, 3, 8))


@pytest.mark.parametrize("argument", ["weight", "bias", "running_mean", "running_var", "out"])
def test_a_gpu_array_with_x_on_the_cpu_is_an_error_that_names_both(argument):
    mean = np.zeros(3)
    others = {"running_mean": mean} if argument != "running_mean" else {}
    with pytest.raises(bn.BnnumbaTypeError, match=rf"{argument}: .*on the CPU.* on a GPU"):
        bn.batch_norm_training(normal((4, 3, 8)), **{argument: Interface(3)}, **others)
    assert not mean.any()


def test_a_tensor_on_a_gpu_with_x_on_the_cpu_is_an_error_that_names_both():
    torch = pytest.importorskip("torch")
    weight = torch.ones(3, device="meta")  # any device that is not the CPU
    with pytest.raises(
        bn.BackendError, match=r"weight: .* on the CPU, as the first array is, .* device meta"
    ):
        bn.batch_norm_training(torch.zeros(4, 3, 8), weight)


def test_stand_ins_with_the_cuda_array_interface_or_dlpack_on_the_simulator():
    run_simulated("standin_cases.py", device="simulator")


@pytest.mark.slow
def test_tensors_of_pytorch_on_the_simulator():
    pytest.importorskip("torch")
    chosen = "layout or inference or fold or one_launch or running or empty or bad or float16"
    run_simulated("device_cases.py", "-k", chosen, device="simulated_torch")


@pytest.mark.slow
def test_what_is_run_on_a_gpu_alone_goes_through_on_the_simulator():
    pytest.importorskip("torch")
    run_simulated("hardware_cases.py", device="simulated_torch")
    done = run_python("from benchmarks.gpu import main; main()", "--dry-run")
    assert "| training ncs float32" in done.stdout
    assert "bnnumba has no time" not in done.stdout
    done = run_python("from benchmarks.gpu import main; main()", "--dry-run", "--plans")
    assert "passes" in done.stdout
    assert "KiB a block" in done.stdout
