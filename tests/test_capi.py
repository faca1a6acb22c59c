"""The C libraries: conformance programs, what they link to and export, and their ABI."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from capi_support import (
    C99,
    CAPI,
    HEADER,
    LIBRARIES,
    WARNINGS,
    build,
    build_for_aarch64,
    link,
    make,
    needs,
    run,
)
from numba import cuda
from support import run_python

from bnnumba import config
from bnnumba.__main__ import main

PROGRAMS = sorted(path.stem for path in (CAPI / "tests").glob("test_*.c"))
PROMISES = [
    (name, program) for name in LIBRARIES for program in PROGRAMS
    if (name, program) != ("bnnumba_embed", "test_isa")  # its kernels are for this very CPU
]  # fmt: skip


@pytest.mark.slow
@needs("cc")
@pytest.mark.parametrize(("name", "program"), PROMISES)
def test_conformance(name, program, tmp_path):
    source, binary = CAPI / "tests" / f"{program}.c", tmp_path / program
    run("cc", *C99, "-O1", source, "-o", binary, *link(name), "-lpthread")
    run(binary, env={"BNNUMBA_PYTHON_ENV": sys.prefix})


@pytest.mark.slow
@needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p != "test_isa"])  # starts itself
def test_conformance_on_an_emulated_aarch64(program, tmp_path):
    directory, system = build_for_aarch64(), "/usr/aarch64-linux-gnu"
    source, binary = CAPI / "tests" / f"{program}.c", tmp_path / program
    run(
        "aarch64-linux-gnu-gcc", *C99, "-O1", f"-I{HEADER.parent}", source, "-o", binary,
        f"-L{directory}", "-lbnnumba", "-lm", "-lpthread",
    )  # fmt: skip
    libraries = f"LD_LIBRARY_PATH={directory}:{system}/lib"
    run("qemu-aarch64", "-L", system, "-E", libraries, binary)


def _on_device(name, device, tmp_path, **env):
    binary = tmp_path / "device"
    run("cc", *C99, "-O1", CAPI / "tests" / "device.c", "-o", binary, *link(name), "-ldl")
    run(binary, device, env={"BNNUMBA_PYTHON_ENV": sys.prefix, **env})


@pytest.mark.slow
@needs("cc")
def test_tensors_on_a_simulated_gpu(tmp_path):
    _on_device("bnnumba_embed", "simulator", tmp_path, NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.slow
@needs("cc")
@pytest.mark.parametrize("name", LIBRARIES)
def test_tensors_on_a_gpu_that_is_not_there_are_refused(name, tmp_path):
    if name == "bnnumba_embed" and cuda.is_available():
        pytest.skip("there is a GPU")
    _on_device(name, "none", tmp_path)


@needs("cc")
@pytest.mark.skipif(not cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu(tmp_path):
    _on_device("bnnumba_embed", "cuda", tmp_path)


@needs("nm")
def test_nothing_of_python_is_left_undefined():
    symbols = run("nm", "-D", "-u", build()).stdout
    assert "GOMP_parallel" in symbols
    assert not re.search(r"\bPy|_Py|NRT|numba|__extendhfsf2|__truncsfhf2", symbols)


@needs("ldd")
def test_the_library_needs_the_c_library_and_openmp_only():
    needed = {line.split()[0].split("/")[-1] for line in run("ldd", build()).stdout.splitlines()}
    allowed = (
        r"linux-vdso\.so\.1|ld-linux.*|libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libgomp\.so\.1"
    )
    assert {name for name in needed if not re.fullmatch(allowed, name)} == set()


def _exported(name):
    lines = run("nm", "-D", "--defined-only", build(name)).stdout.splitlines()
    return sorted(line.split()[-1].split("@")[0] for line in lines)


def _layouts(tmp_path):
    """Return the sizes and offsets of all structs of the header, as the compiler sees them."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    structs = re.findall(r"typedef struct (\w+) \{(.*?)\}", text, re.S)
    prints = []
    for struct, body in structs:
        prints.append(f'printf("struct {struct} size %zu\\n", sizeof({struct}));')
        for member in re.findall(r"\*?(\w+);", body):
            prints.append(
                f'printf("struct {struct} {member} %zu\\n", offsetof({struct}, {member}));'
            )
    enums = re.findall(r"\b(BNNUMBA_[A-Z0-9_]+) = ", text)
    prints += [f'printf("enum {name} %d\\n", (int){name});' for name in enums]
    source, binary = tmp_path / "layouts.c", tmp_path / "layouts"
    source.write_text(
        "#include <bnnumba.h>\n#include <stdio.h>\nint main(void)\n{\n"
        + "\n".join(prints)
        + "\nreturn 0;\n}\n"
    )
    run("cc", *C99, source, "-o", binary, f"-I{HEADER.parent}")
    return run(binary).stdout.splitlines()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the list is that of x86-64")
@needs("cc", "nm")
def test_the_abi_is_the_committed_one(tmp_path):
    found = [f"function {name}" for name in _exported("bnnumba")] + _layouts(tmp_path)
    assert found == (CAPI / "abi.txt").read_text().splitlines()


@pytest.mark.slow
@needs("cc", "nm")
def test_both_libraries_export_the_same_and_nothing_else():
    declared = re.findall(r"^\w[\w ]*?\*?(bnnumba_\w+)\(", HEADER.read_text(), re.M)
    assert _exported("bnnumba") == _exported("bnnumba_embed") == sorted(declared)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs need no fence")
@needs("objdump")
@pytest.mark.parametrize("name", LIBRARIES)
def test_there_is_a_fence_for_streamed_results(name):
    # What it is for happens too seldom to be seen: another thread, told of a result, that reads it.
    assert re.search(r"\bsfence\b", run("objdump", "-d", build(name)).stdout)


@needs("cc")
def test_the_library_is_small_and_loads_at_once():
    path = build()
    assert path.stat().st_size < 4 * 2**20
    # What OpenMP's runtime costs by itself does not count.
    code = f"""if True:
        import ctypes, time
        ctypes.CDLL("libgomp.so.1")
        begin = time.perf_counter()
        ctypes.CDLL({str(path)!r})
        print(time.perf_counter() - begin)
    """
    assert min(float(run(sys.executable, "-c", code).stdout) for _ in range(5)) < 5e-3


@needs("readelf")
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_soname_is_that_of_the_major_version(name):
    assert f"[lib{name}.so.0]" in run("readelf", "-d", build(name)).stdout


@pytest.mark.parametrize("compiler", ["gcc", "clang", "g++", "clang++"])
def test_the_header_is_clean_c99_and_cpp17(compiler, tmp_path):
    try:
        subprocess.run([compiler, "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"not installed: {compiler}")
    cpp = compiler.endswith("++")
    body = """#include <bnnumba.h>
        int main(void) { bnnumba_params p = BNNUMBA_PARAMS_INIT; return p.weight != 0; }\n"""
    # The caller's own dlpack.h, before ours: its structs are the ones that count.
    dlpack = """
        #define DLPACK_DLPACK_H_
        #include <stdint.h>
        typedef enum { kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;
        typedef struct { DLDeviceType device_type; int32_t device_id; } DLDevice;
        typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
        typedef struct { void *data; DLDevice device; int32_t ndim; DLDataType dtype;
                         int64_t *shape; int64_t *strides; uint64_t byte_offset; } DLTensor;
    """
    for before in ("", "#include <bnnumba.h>\n", dlpack):
        source = tmp_path / ("header.cpp" if cpp else "header.c")
        source.write_text(before + body)
        flags = ["-std=c++17" if cpp else "-std=c99", *WARNINGS]
        run(compiler, *flags, f"-I{HEADER.parent}", source, "-o", tmp_path / "header")


@pytest.mark.slow
@needs("cc")
def test_embedding_says_what_is_missing(tmp_path):
    source, binary = CAPI / "tests" / "test_version.c", tmp_path / "version"
    run("cc", *C99, source, "-o", binary, *link("bnnumba_embed"))
    process = run(binary, env={"BNNUMBA_PYTHON_ENV": str(tmp_path)}, status=1)
    assert f"there is no Python environment at {tmp_path}" in process.stderr
    site_packages = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    (tmp_path / site_packages / "bnnumba" / "_capi").mkdir(parents=True)
    (tmp_path / site_packages / "bnnumba" / "__init__.py").write_text("raise ImportError('broken')")
    env = {"BNNUMBA_PYTHON_ENV": str(tmp_path), "PYTHONPATH": str(tmp_path / site_packages)}
    process = run(binary, env=env, status=1)
    assert f"bnnumba does not start in the Python environment {tmp_path}" in process.stderr


@pytest.mark.slow
@needs("cc")
def test_embedding_starts_the_python_of_its_environment_whatever_surrounds_it(tmp_path):
    source, binary = CAPI / "tests" / "test_handles.c", tmp_path / "handles"
    run("cc", *C99, source, "-o", binary, *link("bnnumba_embed"))
    (tmp_path / "numba.py").write_text("raise ImportError('the wrong one')")
    surroundings = {
        "BNNUMBA_PYTHON_ENV": sys.prefix, "PATH": "/usr/bin:/bin", "PYTHONHOME": "/nowhere",
        "PYTHONPATH": str(tmp_path),
    }  # fmt: skip
    run(binary, env=surroundings)


@pytest.mark.slow
@needs("cc")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_can_be_closed_after_it_has_started_threads(name, tmp_path):
    source, binary = tmp_path / "close.c", tmp_path / "close"
    source.write_text(r"""
        #include <bnnumba.h>
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <string.h>

        typedef bnnumba_status moments(bnnumba_dtype, bnnumba_layout, int64_t, int64_t, int64_t,
                                       const void *, int64_t *, double *, double *);

        int main(int count, char **arguments)
        {
            float *x = calloc(300000, sizeof *x);
            double mean[3], m2[3];
            for (int i = 0; i < 20 && count > 1; i++) {
                moments *call;
                void *library = dlopen(arguments[1], RTLD_NOW);
                void *symbol = library ? dlsym(library, "bnnumba_moments") : NULL;
                if (!symbol)
                    return 2;
                memcpy(&call, &symbol, sizeof call);
                if (call(BNNUMBA_FLOAT32, BNNUMBA_NSC, 100000, 3, 1, x, NULL, mean, m2))
                    return 3;
                dlclose(library);
            }
            free(x);
            return 0;
        }
    """)
    path = build(name)
    run("cc", *C99, f"-I{HEADER.parent}", source, "-o", binary, "-ldl")
    run(binary, path, env={"BNNUMBA_PYTHON_ENV": sys.prefix})


@pytest.mark.slow
@needs("cc")
@pytest.mark.parametrize(("linked", "opened"), [LIBRARIES, LIBRARIES[::-1]])
def test_a_library_calls_itself_in_a_program_that_has_the_other(linked, opened, tmp_path):
    source, binary = tmp_path / "both.c", tmp_path / "both"
    source.write_text(r"""
        #include <bnnumba.h>
        #include <dlfcn.h>
        #include <string.h>

        typedef bnnumba_status moments(bnnumba_dtype, bnnumba_layout, int64_t, int64_t, int64_t,
                                       const void *, int64_t *, double *, double *);

        static int wrong(moments *call)
        {
            float x[6] = {1, 2, 3, 4, 5, 6};
            double mean[3], m2[3];
            return call(BNNUMBA_FLOAT32, BNNUMBA_NCS, 2, 3, 1, x, NULL, mean, m2)
                || mean[0] != 2.5 || m2[2] != 4.5;
        }

        int main(int count, char **arguments)
        {
            moments *call;
            void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL;
            void *symbol = library ? dlsym(library, "bnnumba_moments") : NULL;
            if (!symbol)
                return 2;
            memcpy(&call, &symbol, sizeof call);
            if (wrong(call))
                return 3;
            return call == bnnumba_moments || wrong(bnnumba_moments) ? 4 : 0;
        }
    """)
    path = build(opened)
    run("cc", *C99, source, "-o", binary, *link(linked), "-ldl")
    run(binary, path, env={"BNNUMBA_PYTHON_ENV": sys.prefix})


@needs("cmake")
@pytest.mark.parametrize(
    ("installed", "wanted", "fits"),
    [
        ("0.1.0", "", True), ("0.1.0", "0.1", True), ("0.1.0", "0.2", False),
        ("0.1.0", "1.0", False), ("1.2.0", "0.1", False), ("1.2.0", "1.1", True),
        ("0.2.0", "0.1...0.2", True), ("0.2.0", "0.1...<0.2", False), ("0.1.9", "0.1...<0.2", True),
        ("0.2.1", "0.1...0.2", False),
    ],
)  # fmt: skip
def test_cmake_takes_a_version_of_the_same_major_number(installed, wanted, fits, tmp_path):
    file = (CAPI / "cmake" / "bnnumba-config-version.cmake.in").read_text()
    lowest, is_range, highest = wanted.partition("...")
    major = f'set(PACKAGE_FIND_VERSION_MAJOR "{wanted.split(".")[0]}")' if wanted else ""
    upper = f"""
        set(PACKAGE_FIND_VERSION_MAX "{highest.removeprefix("<")}")
        set(PACKAGE_FIND_VERSION_RANGE_MAX {"EXCLUDE" if highest.startswith("<") else "INCLUDE"})
    """
    script = tmp_path / "script.cmake"
    script.write_text(f"""
        set(PACKAGE_FIND_VERSION "{lowest}")
        {major}
        {upper if is_range else ""}
        {file.replace("@VERSION@", installed)}
        message("compatible: ${{PACKAGE_VERSION_COMPATIBLE}}")
    """)
    said = run("cmake", "-P", script).stderr
    assert f"compatible: {str(fits).upper()}" in said


@pytest.mark.slow
@needs("cc")
def test_a_second_process_with_the_embedded_library_compiles_nothing(tmp_path):
    source, binary, cache = tmp_path / "twice.c", tmp_path / "twice", tmp_path / "cache"
    source.write_text("""
        #include <bnnumba.h>

        int main(void)
        {
            float x[6] = {1, 2, 3, 4, 5, 6};
            double mean[3], m2[3];
            return bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 2, 3, 1, x, 0, mean, m2)
                || mean[0] != 2.5;
        }
    """)
    run("cc", *C99, source, "-o", binary, *link("bnnumba_embed"))
    env = {"BNNUMBA_PYTHON_ENV": sys.prefix, "NUMBA_CACHE_DIR": str(cache)}
    run(binary, env=env)
    saved = {path: path.stat().st_mtime_ns for path in cache.rglob("entries.*.nbc")}
    assert len(saved) == 3  # to choose, to collect and to merge
    run(binary, env=env)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("entries.*.nbc")} == saved


@pytest.mark.slow
@needs("cc")
def test_hot_calls_of_the_embedded_library_do_not_take_the_gil(tmp_path):
    source, binary = tmp_path / "gil.c", tmp_path / "gil"
    source.write_text(r"""
        #define _POSIX_C_SOURCE 200809L
        #include <bnnumba.h>
        #include <dlfcn.h>
        #include <pthread.h>
        #include <string.h>
        #include <unistd.h>

        static int forward(void)
        {
            float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[8];
            return bnnumba_forward_training(
                BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, 8, 1, x, NULL, y, NULL);
        }

        static void *hot_calls(void *status)
        {
            for (int i = 0; i < 1000; i++)
                *(int *)status |= forward();
            return NULL;
        }

        int main(void)
        {
            int status = forward();
            void *library = dlopen("libbnnumba_embed.so.0", RTLD_NOW), *symbol;
            int (*hold_the_gil)(void);
            pthread_t thread;
            if (status || !library || !(symbol = dlsym(library, "PyGILState_Ensure")))
                return 1;
            memcpy(&hold_the_gil, &symbol, sizeof symbol);
            hold_the_gil();
            alarm(60); /* a call that waits for the GIL waits forever */
            pthread_create(&thread, NULL, hot_calls, &status);
            pthread_join(thread, NULL);
            return status;
        }
    """)
    run("cc", *C99, "-O2", source, "-o", binary, *link("bnnumba_embed"), "-pthread", "-ldl")
    run(binary, env={"BNNUMBA_PYTHON_ENV": sys.prefix})


@needs("cc")
def test_ctrl_c_ends_a_program_of_the_embedded_library(tmp_path):
    source, binary = tmp_path / "interrupted.c", tmp_path / "interrupted"
    source.write_text("""
        #include <bnnumba.h>
        #include <signal.h>
        #include <stdio.h>
        int main(void) {
            float x[] = {1, 3};
            double mean, m2;
            signal(SIGINT, SIG_DFL);
            puts(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 2, 1, 1, x, NULL, &mean, &m2)
                     ? bnnumba_last_error() : "computed");
            fflush(stdout);
            raise(SIGINT);
            return 0;
        }
    """)
    run("cc", *C99, source, "-o", binary, *link("bnnumba_embed"))
    environment = {**os.environ, "BNNUMBA_PYTHON_ENV": sys.prefix}
    process = subprocess.run([binary], env=environment, capture_output=True, check=False)
    assert process.stdout == b"computed\n"
    assert process.returncode == -signal.SIGINT


def test_python_forks_while_another_thread_starts_the_embedded_library():
    run_python(
        """
        import ctypes, os, signal, sys, threading, time

        sys.setswitchinterval(1e-4)
        library = ctypes.CDLL(sys.argv[1])
        library.bnnumba_last_error.restype = ctypes.c_char_p

        def in_child(then):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a hang is a failure
                status = library.bnnumba_init()
                assert status == 0 or b"forked while another thread" in library.bnnumba_last_error()
                then(status)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        def grandchild(status):
            in_child(lambda again: os._exit(again != status))

        thread = threading.Thread(target=library.bnnumba_init)
        thread.start()
        for _ in range(5):
            time.sleep(0.02)
            in_child(grandchild)
        thread.join()
        in_child(lambda status: os._exit(status))
        """,
        str(build("bnnumba_embed")),
        env={"BNNUMBA_PYTHON_ENV": sys.prefix},
    )


@needs("cc", "pkg-config", "cmake")
@pytest.mark.slow
def test_an_installed_library_is_found_by_pkg_config_and_cmake(tmp_path):
    prefix = tmp_path / "prefix"
    build("bnnumba_embed")
    make("install", f"PREFIX={prefix}")
    environment = {
        "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig"),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
    }
    program = CAPI / "tests" / "test_version.c"
    flags = run("pkg-config", "--cflags", "--libs", "bnnumba", env=environment).stdout.split()
    run("cc", program, *flags, "-lm", "-o", tmp_path / "a.out")
    run(tmp_path / "a.out", env=environment)
    flags = run("pkg-config", "--libs", "bnnumba_embed", env=environment).stdout.split()
    assert flags[-1] == "-lbnnumba_embed"

    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.16)
        project(app C)
        find_package(bnnumba 0.1 REQUIRED)
        add_executable(app {program})
        target_link_libraries(app bnnumba::bnnumba m)
        if(NOT TARGET bnnumba::embed)
          message(FATAL_ERROR "no bnnumba::embed")
        endif()
        find_package(bnnumba REQUIRED COMPONENTS bnnumba embed OPTIONAL_COMPONENTS fortran)
        if(NOT bnnumba_embed_FOUND OR bnnumba_fortran_FOUND)
          message(FATAL_ERROR "found: ${{bnnumba_embed_FOUND}}, ${{bnnumba_fortran_FOUND}}")
        endif()
        find_package(bnnumba COMPONENTS fortran)
        if(bnnumba_FOUND)
          message(FATAL_ERROR "there is no component fortran")
        endif()
    """)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "b")
    run(tmp_path / "b" / "app")


@needs("cc", "make")
@pytest.mark.slow
def test_config_points_to_a_library_that_links_and_runs(tmp_path):
    make("stage")
    command = [sys.executable, "-m", "bnnumba", "config"]
    flags = run(*command, "--cflags", "--libs").stdout.split()
    run("cc", CAPI / "tests" / "test_moments.c", *flags, "-lm", "-o", tmp_path / "a.out")
    run(tmp_path / "a.out")
    include, libraries, cmake = (
        run(*command, option).stdout.strip() for option in ("--include", "--libdir", "--cmakedir")
    )
    assert Path(libraries, "libbnnumba.so").is_file()
    assert run(*command, "--embed", "--libs").stdout.split()[-1] == "-lbnnumba_embed"
    assert Path(include, "bnnumba.h").is_file()
    assert Path(cmake, "bnnumba-config.cmake").is_file()


def test_config_says_when_there_is_no_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(config, "_PLACES", (tmp_path,))
    assert main(["config", "--libs"]) == 1
    assert "make capi" in capsys.readouterr().err
