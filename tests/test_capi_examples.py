"""The examples of the C library, each built and run where its compiler exists."""

from __future__ import annotations

import numpy as np
import pytest
from capi_support import BUILD, C99, CAPI, WARNINGS, build, link, needs, run

EXAMPLES = CAPI / "examples"
pytestmark = pytest.mark.slow


@needs("cc")
def test_streaming_a_file_normalizes_its_columns(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50_000, 7)) * [1, 2, 3, 4, 5, 6, 7] + 1e4).astype(np.float32)
    x.tofile(tmp_path / "in")
    run("cc", *C99, EXAMPLES / "stream.c", "-o", tmp_path / "stream", *link("bnnumba"))
    process = run(tmp_path / "stream", 7, tmp_path / "in", tmp_path / "out")
    assert "50000 rows" in process.stdout
    y = np.fromfile(tmp_path / "out", np.float32).reshape(-1, 7).astype(np.float64)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    process = run(tmp_path / "stream", 7, tmp_path / "missing", tmp_path / "out", status=1)
    assert "missing" in process.stderr
    run(tmp_path / "stream", status=2)


@needs("cc")
def test_training_a_layer_checks_its_gradients_and_learns(tmp_path):
    run("cc", *C99, EXAMPLES / "train.c", "-o", tmp_path / "train", *link("bnnumba"))
    output = run(tmp_path / "train").stdout
    assert "gradients differ" in output
    assert "weight 0.5000 2.0000 -1.0000" in output


@needs("c++")
def test_cpp(tmp_path):
    flags = ["-std=c++17", *WARNINGS]
    run("c++", *flags, EXAMPLES / "raii.cpp", "-o", tmp_path / "raii", *link("bnnumba"))
    output = run(tmp_path / "raii").stdout
    assert "variance 2.6667 866.6667" in output
    assert "error: c: expected a number that is not negative, got -1" in output


@needs("rustc")
def test_rust(tmp_path):
    build()
    run("rustc", "--edition=2021", "-Dwarnings", EXAMPLES / "normalize.rs", "-o", tmp_path / "rust",
        "-L", f"native={BUILD}", "-C", f"link-arg=-Wl,-rpath,{BUILD}")  # fmt: skip
    output = run(tmp_path / "rust").stdout
    assert "normalized -1.2247 0.0000 1.2247" in output


@needs("gfortran")
def test_fortran(tmp_path):
    flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror"]
    run(
        "gfortran", *flags, EXAMPLES / "normalize.f90", "-o", tmp_path / "fortran", *link("bnnumba")
    )
    assert "mean" in run(tmp_path / "fortran").stdout
