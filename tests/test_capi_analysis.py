"""The C shim under sanitizers, valgrind and a short run of the fuzzer."""

from __future__ import annotations

import re

import pytest
from capi_support import BUILD, C99, CAPI, build, link, make, needs, run
from test_capi import PROGRAMS

pytestmark = pytest.mark.slow
OF_PYTHON = {"embed", "interpreter"}
SHIM = sorted(str(path) for path in (CAPI / "src").glob("*.c") if path.stem not in OF_PYTHON)
INCLUDES = [f"-I{CAPI / 'include'}", f"-I{BUILD}"]
FUZZ_RUNS = 20_000


def _with_kernels():
    build()
    return sorted(str(path) for path in BUILD.glob("kernels_*.o"))


@needs("gcc")
@pytest.mark.parametrize("sanitizers", ["address", "undefined"])
def test_conformance_programs_are_clean_under_sanitizers(sanitizers, tmp_path):
    flags = [*C99, "-g", "-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    objects = []
    for source in SHIM:
        objects.append(tmp_path / f"{len(objects)}.o")
        run("gcc", *flags, "-fopenmp", *INCLUDES, "-c", source, "-o", objects[-1])
    for program in PROGRAMS:
        if (sanitizers, program) == ("address", "test_fork"):
            continue  # its allocator may be locked by another thread when the process forks
        source = CAPI / "tests" / f"{program}.c"
        binary = tmp_path / program
        libraries = ["-fopenmp", "-lm", "-lpthread"]
        run("gcc", *flags, *INCLUDES, source, *objects, *_with_kernels(), *libraries, "-o", binary)
        run(binary)


@needs("valgrind", "cc")
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p not in {"test_isa", "test_fork"}])
def test_conformance_programs_are_clean_under_valgrind(program, tmp_path):
    source, binary = CAPI / "tests" / f"{program}.c", tmp_path / program
    run("cc", *C99, "-g", "-O1", source, "-o", binary, *link("bnnumba"), "-lpthread")
    # OpenMP's runtime keeps its threads until the end: memory still reachable is no leak.
    run(
        "valgrind", "-q", "--error-exitcode=9", "--leak-check=full",
        "--errors-for-leak-kinds=definite", "--show-leak-kinds=definite", binary, timeout=900,
    )  # fmt: skip


@needs("clang")
def test_the_fuzzer_finds_nothing(tmp_path):
    (tmp_path / "empty.c").write_text("int LLVMFuzzerTestOneInput(void) { return 0; }")
    try:
        run("clang", "-fsanitize=fuzzer", tmp_path / "empty.c", "-o", tmp_path / "empty")
    except AssertionError:
        pytest.skip("clang has no libFuzzer here: install libclang-rt-dev")
    _with_kernels()
    process = make("fuzz", f"FUZZ_RUNS={FUZZ_RUNS}", f"FUZZ_DIR={tmp_path}")
    done = re.search(r"Done (\d+) runs", process.stdout + process.stderr)
    assert done, process.stderr[-2000:]
    assert int(done[1]) >= FUZZ_RUNS
