"""What importing the package brings in, and what it shows."""

import importlib
import pathlib
import shutil
import subprocess
import sys

import pytest
from support import run_python

import bnnumba

ROOT = pathlib.Path(bnnumba.__file__).parent.parent
FOREIGN = ["torch", "cupy", "numba.cuda", "numba_cuda", "dask", "mpi4py", "jax", "keras"]
FOREIGN += ["sklearn", "pandas", "matplotlib"]
CORE = run_python("import bnnumba, sys; print(*sys.modules)").stdout.split()
MODULES = ["bnnumba.reference", *sorted(name for name in CORE if name.startswith("bnnumba"))]
PUBLISHING = [name for name in MODULES if hasattr(importlib.import_module(name), "__all__")]


@pytest.mark.parametrize("module", ["bnnumba", "bnnumba.reference"])
def test_importing_loads_no_framework(module):
    loaded = run_python(f"import {module}, sys; print(*sys.modules, sep='\\n')").stdout.split()
    assert module in loaded
    assert not {name for name in loaded if name in FOREIGN}


def test_a_call_on_numpy_arrays_loads_no_framework_either():
    loaded = run_python(
        """
        import sys
        import numpy as np
        import bnnumba as bn

        x = np.ones((4, 3, 5), np.float32)
        bn.batch_norm_backward(x, bn.batch_norm_training(x)[1])
        print(*sys.modules, sep="\\n")
        """
    ).stdout.split()
    assert not {name for name in loaded if name in FOREIGN}


PUBLIC = {
    "BatchNorm",
    "Gradients",
    "Moments",
    "RunningMoments",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "CONVENTIONS",
    "Convention",
    "Saved",
    "fold_batch_norm",
    "moments",
    "update_running",
    "BnnumbaError",
    "BnnumbaTypeError",
    "BnnumbaValueError",
    "BackendError",
}


def test_the_public_names_are_all_there():
    assert set(bnnumba.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLISHING)
def test_public_names_are_those_of_all(name):
    module = importlib.import_module(name)
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    for public in listed:
        assert hasattr(module, public)
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    }
    assert own <= set(listed)


def test_every_public_object_is_documented():
    for name in bnnumba.__all__:
        if not name.startswith("__"):
            text = getattr(bnnumba, name).__doc__
            assert text, name
            assert len(text.strip()) > 20, name


def test_the_example_of_the_readme_runs():
    if not (ROOT / "README.md").exists():
        pytest.skip("this is not a clone")
    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(example, {})


def test_imports_go_one_way():
    lint = shutil.which("lint-imports") or shutil.which(
        "lint-imports", path=str(pathlib.Path(sys.executable).parent)
    )
    if lint is None or not (ROOT / "pyproject.toml").exists():
        pytest.skip("import-linter is not installed, or this is not a clone")
    process = subprocess.run([lint], cwd=ROOT, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stdout
