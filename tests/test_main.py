"""``python -m bnnumba``."""

import subprocess
import sys

import numba
import numpy as np
import pytest
from support import run_python

import bnnumba
from bnnumba import __main__ as command_line
from bnnumba import code_cache
from bnnumba.__main__ import main as run
from bnnumba._capi import entries


def main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bnnumba", *arguments],
        text=True,
        capture_output=True,
        check=False,
        timeout=900,
    )


def test_info_says_what_a_bug_report_needs():
    process = main("info")
    assert process.returncode == 0, process.stderr
    for word in [bnnumba.__version__, numba.__version__, np.__version__, sys.version.split()[0]]:
        assert word in process.stdout
    text = process.stdout.lower()
    for word in ["cpu", "threading layer", "threads", "cache", "cuda"]:
        assert word in text


def test_info_works_where_no_threading_layer_can_be_used(monkeypatch):
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "no such layer")
    process = main("info")
    assert process.returncode == 0, process.stderr
    assert "none can be used" in process.stdout


def test_a_threading_layer_that_is_not_there_is_an_error_of_ours(monkeypatch):
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "no such layer")
    run_python(
        """
        import bnnumba as bn
        from bnnumba.cpu import threads

        try:
            threads.count()
        except bn.BackendError as error:
            assert "no such layer" in str(error)
        else:
            raise AssertionError("no error")
        """
    )


@pytest.mark.slow
def test_warmup_shows_progress_and_leaves_nothing_to_compile():
    process = main("warmup")
    assert process.returncode == 0, process.stderr
    assert "[1/6]" in process.stdout
    # A cached kernel has hits and no misses.
    run_python(
        """
        import numpy as np
        from numba.core import event
        import bnnumba as bn

        with event.install_recorder("numba:compile") as recorder:
            for shape, axis in [
                ((8, 16, 20, 20), 1),
                ((64, 100), 1),
                ((8, 20, 20, 16), -1),
                ((8, 64, 56, 56), 1),
                ((2000, 64, 7, 7), 1),
                ((64, 2, 100, 100), 1),
                ((50, 20000), 1),
                ((20001, 20), 1),
                ((30000, 5, 3), 1),
            ]:
                x = np.ones(shape, np.float32)
                w = np.ones(shape[axis], np.float32)
                y, saved = bn.batch_norm_training(x, w, w, axis=axis)
                bn.batch_norm_backward(y, saved)
                bn.batch_norm_inference(x, w, w, w, w, axis=axis)
                bn.moments(x, axis=axis)
        assert not recorder.buffer, recorder.buffer
        """
    )


def test_warmup_for_c_compiles_what_data_of_a_dtype_need():
    found = entries.names("bf16")
    assert {"choose", "merge", "forward_ncs_bf16", "input_rc_bf16", "coefficients_f32"} < {*found}
    assert not [name for name in found if name.endswith(("_f16", "ncs_f64", "rc_f32"))]
    everything = entries.names("f32", "f64", "f16", "bf16")
    assert everything == entries.names()
    assert len({*everything}) == len(everything)


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["info", "--nonsense"], ["config"], [], ["warmup", "--cuda", "7.5"],
     ["warmup", "--cuda", "sm_90"], ["warmup", "--cuda"]],
)  # fmt: skip
def test_a_wrong_command_is_explained(arguments):
    process = main(*arguments)
    assert process.returncode == 2
    assert "usage" in process.stderr.lower()
    assert "Traceback" not in process.stderr


def test_warmup_of_cuda_kernels_without_numba_cuda_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bnnumba.gpu.jit", None)
    assert run(["warmup", "--cuda", "9.0"]) == 1
    said = capsys.readouterr()
    assert "pip install 'bnnumba[cu13]'" in said.err
    assert not said.out  # nothing was compiled before


def test_warmup_fails_where_what_it_compiled_could_not_be_kept(monkeypatch, capsys):
    def compile_on_a_full_disk():
        code_cache.not_kept.append(OSError(28, "No space left on device"))

    monkeypatch.setattr(code_cache, "not_kept", [])
    monkeypatch.setattr(command_line, "not_kept", code_cache.not_kept)
    work = [("a case", lambda: None), ("another", compile_on_a_full_disk)]
    monkeypatch.setattr(command_line, "_common_cases", lambda dtypes: iter(work))
    assert run(["warmup"]) == 1
    said = capsys.readouterr()
    assert "[2/2] another" in said.out
    assert "1 compiled functions could not be kept: [Errno 28] No space" in said.err


def test_info_says_that_the_compiler_is_switched_off():
    process = run_python(
        "import bnnumba.__main__ as m; m.main(['info'])", env={"NUMBA_DISABLE_JIT": 1}
    )
    assert "NUMBA_DISABLE_JIT is set" in process.stdout


def test_version():
    assert main("--version").stdout.split() == ["bnnumba", bnnumba.__version__]


def test_config_without_a_question_names_what_can_be_asked():
    assert "--cflags, --libs, --include, --libdir, --cmakedir" in main("config").stderr
