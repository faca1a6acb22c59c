"""What reaches the CUDA driver, by a stand-in for it: contexts, kernels, arguments, streams."""

import importlib.util
import os
import pathlib
import shutil
import subprocess

import pytest
from support import run_python

SOURCE = pathlib.Path(__file__).with_name("fake_cuda.c")
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("numba_cuda") is None,
        reason="numba-cuda is not installed: `make gpu-test` brings it",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(
        os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator has no driver"
    ),
]


@pytest.fixture
def driver(tmp_path):
    """Run code whose CUDA driver is the stand-in; return what both wrote."""
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, SOURCE], check=True)

    def run(code, integers, reals):
        header = """
            import sys
            import numpy as np
            import bnnumba as bn
            from device_standins import StandIn
            sys.stdout.reconfigure(line_buffering=True)
            """
        environment = {
            "LD_LIBRARY_PATH": tmp_path, "FAKE_INTEGERS": integers, "FAKE_REALS": reals,
        }  # fmt: skip
        return run_python(header + code, env=environment).stdout.splitlines()

    return run


def test_a_launch_gets_its_arguments_on_the_stream_of_x_and_in_the_context_of_its_device(driver):
    lines = driver(
        """
            x, mean = StandIn(np.ones((4, 8, 64), np.float32)), StandIn(np.zeros(8, np.float32))
            x.stream = 0x77
            for _ in range(2):
                y, saved = bn.batch_norm_training(x, running_mean=mean, momentum=0.25)
                print(*(a.host.ctypes.data for a in (x, y, saved._stats.owner, mean)))
            saved.moments
        """,
        integers=16, reals=4,
    )  # fmt: skip
    assert [line.split()[0] for line in lines if not line[0].isdigit()] == [
        "set", "set", "load", "launch",  # loaded once, by a thread that no interrupt ends
        "launch",
        "wait",  # numbers for the host
    ]  # fmt: skip
    addresses = [line.split() for line in lines if line[0].isdigit()]
    launches = [line.split() for line in lines if line.startswith("launch")]
    for (x, y, stats, mean), words in zip(addresses, launches, strict=True):
        assert " ".join(words[:9]) == "launch grid 8 threads 64 shared 1056 stream 0x77"
        given = [x, y, "0", "0", stats, mean, "0"]  # no weight, bias, running variance
        extents = ["8", "64", "16", "512", "64", "512", "64"]  # accesses of four elements
        assert words[9:25] == [*given, *extents, "1", "32"]
        assert [float(word) for word in words[25:]] == pytest.approx([256, 1e-5, 0.25, 255])


def test_streams_that_other_arrays_name_are_waited_for_and_wait(driver):
    lines = driver(
        """
            x, mean = StandIn(np.ones((4, 8, 64), np.float32)), StandIn(np.zeros(8, np.float32))
            x.stream, mean.stream = 0x77, 0x99
            bn.batch_norm_training(x, running_mean=mean)
        """,
        integers=16, reals=4,
    )  # fmt: skip
    events = [line for line in lines if line.split()[0] in ("record", "follow", "launch")]
    assert events[:2] == ["record 0x99", "follow 0x77"]
    assert events[2].startswith("launch")
    assert events[3:] == ["record 0x77", "follow 0x99"]


def test_a_context_that_is_current_is_so_after_a_call(driver):
    lines = driver(
        """
            from cuda.bindings import driver
            driver.cuInit(0)
            driver.cuCtxSetCurrent(driver.CUcontext(64))  # of another device
            for _ in range(2):
                bn.batch_norm_training(StandIn(np.ones((4, 8, 64), np.float32)))
            print("current", int(driver.cuCtxGetCurrent()[1]))
        """,
        integers=16, reals=4,
    )  # fmt: skip
    assert [line.split()[0] for line in lines] == [
        "set", "push", "set", "load", "launch", "pop", "push", "launch", "pop", "current",
    ]  # fmt: skip
    assert lines[-1] == "current 64"


def test_much_shared_memory_is_asked_for_once(driver):
    lines = driver(
        """
            x = StandIn(np.ones((32, 132, 400), np.float32))
            for _ in range(2):
                bn.batch_norm_training(x)
        """,
        integers=16, reals=4,
    )  # fmt: skip
    assert [line.split()[0] for line in lines] == [
        "set", "set", "load", "attribute", "launch", "launch",
    ]  # fmt: skip
    _, name, size = lines[3].split()
    assert name == "8"  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert int(size) == 232448  # all there is: no launch, of whatever thread, needs more
    shared = int(lines[4].split("shared ")[1].split()[0])
    assert 48 * 1024 < shared <= int(size)


def test_an_interrupt_does_not_end_what_compiles_a_kernel(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    lines = driver(
        """
            import signal
            bn.moments(StandIn(np.ones((9, 5), np.float32)))  # imports what compiles
            x = StandIn(np.ones((4, 8, 64), np.float32))
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                bn.moments(x)
            except KeyboardInterrupt:
                print("interrupted")
            bn.moments(x)
        """,
        integers=12, reals=2,
    )  # fmt: skip
    assert [line for line in lines if "launch" not in line and line != "wait"] == [
        "set", "set", "load",
        "set", "interrupted", "load",  # by the thread that goes on
        "set",
    ]  # fmt: skip


def test_a_signal_handler_may_call_while_a_kernel_compiles(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    lines = driver(
        """
            import signal
            bn.moments(StandIn(np.ones((9, 5), np.float32)))  # the first for this GPU
            x, said = StandIn(np.ones((4, 8, 64), np.float32)), []
            signal.signal(signal.SIGALRM, lambda *_: said.append(bn.moments(x).count))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            said.append(bn.moments(x).count)
            print(said)
        """,
        integers=12, reals=2,
    )  # fmt: skip
    assert lines[-1] == "[256, 256]"
    assert lines.count("load") == 2  # of two kernels


def test_an_error_of_the_driver_is_an_error_of_bnnumba(driver):
    lines = driver(
        """
            from bnnumba.gpu.driver import device
            try:
                device(1)
            except bn.BackendError as error:
                print("caught", error)
        """,
        integers=0, reals=0,
    )  # fmt: skip
    assert lines == ["caught CUDA: stand-in"]


def test_a_device_that_is_too_old_is_an_error(driver, monkeypatch):
    monkeypatch.setenv("FAKE_OLD", "1")
    lines = driver(
        """
            try:
                bn.moments(StandIn(np.ones((4, 8, 64), np.float32)))
            except bn.BackendError as error:
                print(error)
        """,
        integers=0, reals=0,
    )  # fmt: skip
    assert lines == ["x: expected a GPU of compute capability 8.0 or more, got (7, 0)"]
