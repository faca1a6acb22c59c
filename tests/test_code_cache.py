"""Where compiled code is kept, and what happens where it cannot be."""

import os
import pathlib
import shutil

import pytest
from support import run_pytest, run_python

import bnnumba
from bnnumba.code_cache import CodeFiles, source_stamp

PACKAGE = pathlib.Path(bnnumba.__file__).parent
# Each process below compiles anew, so it computes little: every function once, or moments alone.
EVERYTHING = "import workload; workload.check(workload.SMALL[:1], workload.FLOATS[:1])"
MOMENTS = "import numpy, bnnumba; assert (bnnumba.moments(numpy.ones((9, 2))).mean == 1).all()"


@pytest.fixture
def nowhere(tmp_path):
    """A path at which no directory can be made, not even by root."""
    file = tmp_path / "file"
    file.write_text("in the way")
    return file / "cache"


@pytest.mark.slow
def test_works_where_no_cache_directory_can_be_written(tmp_path, nowhere):
    shutil.copytree(PACKAGE, tmp_path / "bnnumba", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [tmp_path / "bnnumba", *(tmp_path / "bnnumba").glob("**/")]:
        cache = folder / "__pycache__"
        if not cache.exists():
            cache.write_text("in the way")
    env = {
        "PYTHONPATH": tmp_path,
        "PYTHONDONTWRITEBYTECODE": 1,
        "NUMBA_CACHE_DIR": nowhere,
        "XDG_CACHE_HOME": nowhere,
        "HOME": nowhere,
    }
    code = "import bnnumba; print(bnnumba.__file__); " + EVERYTHING
    process = run_python(code, env=env)
    assert str(tmp_path) in process.stdout, "the copy was tested"
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_after_import_is_only_slower(tmp_path):
    # A full disk, or a directory that went away: compiled code is then kept in memory alone.
    cache = tmp_path / "cache"
    code = f"""
    import pathlib, shutil
    import bnnumba
    cache = pathlib.Path({str(cache)!r})
    shutil.rmtree(cache, ignore_errors=True)
    cache.write_text("in the way")
    {MOMENTS}
    """
    run_python(code, env={"NUMBA_CACHE_DIR": cache})


def _zeroed(data, begin, size):
    return data[:begin] + bytes(size) + data[begin + size :]


DAMAGE = {
    "nothing is left": lambda data: b"",
    "cut short": lambda data: data[:1000],
    "a page of zeros": lambda data: _zeroed(data, len(data) // 2 // 4096 * 4096, 4096),
    "zeros at the beginning": lambda data: _zeroed(data, 0, 512),
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_no_file(tmp_path, damage):
    files = CodeFiles(tmp_path, "function", "sources")
    files.save("int", bytes(range(256)) * 64)
    (path,) = tmp_path.glob("*.nbc")
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert files.load("int") is None
    files.save("int", bytes(range(256)) * 64)
    assert path.read_bytes() == whole
    assert files.load("int") == bytes(range(256)) * 64


@pytest.mark.slow
def test_damaged_files_are_written_anew(tmp_path):
    env = {"NUMBA_CACHE_DIR": tmp_path}
    run_python(MOMENTS, env=env)
    files = list(tmp_path.rglob("*.nbc"))
    whole = [p.read_bytes() for p in files]
    for p, damage in zip(files, [*DAMAGE.values()] * len(files), strict=False):
        p.write_bytes(damage(p.read_bytes()))
    run_python(MOMENTS, env=env)
    assert [len(p.read_bytes()) for p in files] == [len(data) for data in whole]


def test_code_that_two_processes_keep_at_once_is_not_mixed_up(tmp_path):
    one, other = (CodeFiles(tmp_path, "function", "sources") for _ in range(2))
    save = one._save_data

    def save_later(name, data):
        other.save("int", "code for int")
        save(name, data)

    one._save_data = save_later
    one.save("float", "code for float")
    files = CodeFiles(tmp_path, "function", "sources")
    assert files.load("float") == "code for float"
    assert files.load("int") == "code for int"
    assert CodeFiles(tmp_path, "function", "newer sources").load("int") is None


def test_sources_that_are_no_files_have_no_stamp(tmp_path):
    # As in an archive, whose own stamp is taken then.
    assert source_stamp(PACKAGE / "cpu") is not None
    assert source_stamp(PACKAGE / "cpu", tmp_path / "archive.zip" / "bnnumba") is None


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    env = {"NUMBA_CACHE_DIR": tmp_path}
    run_python(EVERYTHING, env=env)
    saved = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nbc")}
    assert saved
    run_python(EVERYTHING, env=env)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nbc")} == saved


@pytest.mark.slow
def test_what_only_compiling_needs_is_not_imported_to_load(tmp_path):
    # Numba imports all that it can compile, and with it SciPy: most of the time of a first call.
    code = MOMENTS + "; import sys; print('numba.np.linalg' in sys.modules)"
    for compiles in True, False:
        assert run_python(code, env={"NUMBA_CACHE_DIR": tmp_path}).stdout == f"{compiles}\n"


@pytest.mark.slow
def test_a_changed_helper_is_not_served_from_the_cache(tmp_path):
    # Numba's own cache watches only the file of the function, not of what that calls.
    copy, cache = tmp_path / "bnnumba", tmp_path / "cache"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    env = {"PYTHONPATH": tmp_path, "NUMBA_CACHE_DIR": cache}
    run_python(MOMENTS, env=env)
    before = set(cache.rglob("*.nbc"))
    helper = copy / "cpu" / "simd.py"
    stat = helper.stat()
    helper.write_text(helper.read_text().replace('"""Vectors', '"""Vectors ', 1))
    os.utime(helper, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stamps = {p: p.stat().st_mtime_ns for p in before}
    run_python(MOMENTS, env=env)
    changed = [p for p in before if not p.exists() or p.stat().st_mtime_ns != stamps[p]]
    assert changed


@pytest.mark.slow
def test_bounds_checks_find_nothing(tmp_path):
    # The stamp of a cache includes this setting: in one of its own, no other kernels are lost.
    run_python(
        """
        import workload

        # Serial and parallel, fused, split and rc; the sources are the same for every dtype.
        work = workload.SMALL + workload.LARGE[1:3] + workload.LARGE[7:8]
        workload.check(work, workload.FLOATS[:1])
        """,
        env={"NUMBA_BOUNDSCHECK": 1, "NUMBA_CACHE_DIR": tmp_path},
        timeout=900,
    )


@pytest.mark.slow
def test_what_needs_no_compiled_code_works_without_the_compiler():
    files = ["test_errors.py", "test_reference.py", "test_cpu_plan.py"]
    # Checks come before any kernel; only a backward pass and an update need results of one.
    which = "not test_errors or (input_is_named and not backward and not update_running)"
    run_pytest("-k", which, *files, env={"NUMBA_DISABLE_JIT": 1})
