"""Every CUDA kernel, compiled without a GPU: what its code loads, stores and spills.

Needs numba-cuda with the compilers that come with it (``make gpu-test`` installs them). Registers
of each kernel are printed; ``pytest -rP`` shows them.
"""

import os
import re
import textwrap

import pytest
from support import run_python

pytest.importorskip(
    "numba_cuda",
    reason="numba-cuda is not installed: `make gpu-test` brings it",
    exc_type=ImportError,
)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

from bnnumba.__main__ import main
from bnnumba.gpu import copy, jit, saved
from bnnumba.gpu.jit import MAX_THREADS, assemble
from bnnumba.gpu.launch import kernels_of
from bnnumba.gpu.plan import widest
from bnnumba.gpu.simd import KINDS

CAPABILITIES = [(8, 0), (9, 0), (12, 0)]
REGISTERS = 65536  # of a multiprocessor, and so of a block
READ = {
    "forward_resident", "forward_swept", "collect_moments", "apply", "infer", "backward_resident",
    "backward_swept", "backward_reduce", "backward_input",
}  # fmt: skip
WRITE = READ - {"collect_moments", "backward_reduce"}


def _accesses(ptx, kind, width):
    """How many vector loads or stores of a width in bytes PTX has in global memory."""
    forms = {16: r"v4\.[bfu]32|v2\.[bfu]64", 8: r"v2\.[bfu]32|v4\.[bfu]16|[bfu]64", 4: r"[bfu]32"}
    return len(re.findall(rf"\b{kind}\.global\.({forms[width]})\s", ptx))


def _assembled(kernel, capability):
    """The PTX of a kernel, after checks of its machine code."""
    _, ptx = kernel.ptx(capability)
    code, report = assemble(ptx, capability)
    assert code[:4] == b"\x7fELF"
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", report)
    stack, stores, loads = (int(n) for n in found.groups())
    print(f"sm_{capability[0]}{capability[1]} {kernel.name:18} {registers:3} registers")
    assert stack == stores == loads == 0, f"{kernel.name}: {report}"
    assert registers * MAX_THREADS <= REGISTERS
    assert ".local" not in ptx
    return ptx


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
@pytest.mark.parametrize("columns", [False, True], ids=["ncs", "rc"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_has_wide_accesses_and_no_spills(kind, columns, capability):
    count = widest(KINDS[kind], columns, capability)
    width = count * KINDS[kind]
    # 16 bytes but for 16-bit channels on what has too few registers for eight of them.
    assert width == (8 if columns and KINDS[kind] == 2 and capability < (9, 0) else 16)
    kernels = vars(kernels_of(kind, count, count if columns else 1, "float32"))
    assert set(kernels) > READ
    for name, kernel in kernels.items():
        ptx = _assembled(kernel, capability)
        if name in READ:
            assert _accesses(ptx, "ld", width) >= 4, name  # several are in flight
        if name in WRITE:
            assert _accesses(ptx, "st", width) >= 2, name
        if kind != "float64":
            assert ".f64" not in ptx, name


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_narrow_accesses_do_not_spill(kind, count):
    for name, kernel in vars(kernels_of(kind, count, 1, "float32")).items():
        assert ".f64" not in _assembled(kernel, (9, 0)), name


def test_float64_parameters_of_float32_data_are_converted_and_not_computed_with():
    kernels = kernels_of("float32", 4, 1, "float64")
    for kernel in (kernels.forward_resident, kernels.infer):
        ptx = _assembled(kernel, (9, 0))
        assert "cvt.rn.f32.f64" in ptx
        assert not re.search(r"\b(add|sub|mul|div|fma|sqrt|rcp)\.(\w+\.)*f64", ptx)


def test_kernels_that_copy_compile():
    for kind, parameter in (("float32", "float64"), ("bfloat16", "float32")):
        for kernel in vars(copy.build(kind, parameter)).values():
            _assembled(kernel, (9, 0))


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_kernels_of_the_c_abi_compile(real):
    for kernel in vars(saved.build(real)).values():
        ptx = _assembled(kernel, (9, 0))
        assert ("cvt.rn.f32.f64" in ptx) == (real == "float32" and kernel.name == "unpack")


KERNEL = """
from bnnumba.gpu import jit
from bnnumba.gpu.launch import kernels_of

def counted(function):
    def call(*arguments, **options):
        call.count += 1
        return function(*arguments, **options)
    call.count = 0
    return call

jit.cuda.compile, jit.assemble = counted(jit.cuda.compile), counted(jit.assemble)
made = [
    kernels_of("float32", count, 1, "float32").merge_sums.machine_code(capability)
    for count in (4, 2) for capability in ((8, 0), (9, 0))
]
assert all(code.startswith(b"\x7fELF") for _, code in made)
assert len(set(made)) == 4
print(jit.cuda.compile.count, jit.assemble.count)
"""


@pytest.mark.slow
def test_kernels_are_kept_for_later_processes(tmp_path):
    env = {"NUMBA_CACHE_DIR": tmp_path}
    assert run_python(KERNEL, env=env).stdout == "4 4\n"
    assert run_python(KERNEL, env=env).stdout == "0 0\n"
    files = [*tmp_path.rglob("*.nbc")]
    assembled = [path for path in files if b"\x7fELF" in path.read_bytes()]
    assert (len(files), len(assembled)) == (8, 4)
    os.truncate(assembled[0], 100)
    assert run_python(KERNEL, env=env).stdout == "0 1\n"
    for path in {*files} - {*assembled}:
        os.truncate(path, 100)
    assert run_python(KERNEL, env=env).stdout == "0 0\n"
    os.truncate(assembled[0], 100)
    assert run_python(KERNEL, env=env).stdout == "1 1\n"


@pytest.mark.slow
def test_kernels_compile_where_none_can_be_kept():
    nowhere = """
    from bnnumba.gpu import jit

    def no_place(function):
        raise RuntimeError

    jit.CompileResultCacheImpl = no_place
    """
    assert run_python(textwrap.dedent(nowhere) + KERNEL).stdout == "4 4\n"


def test_what_nothing_assembles_is_left_to_the_driver(monkeypatch):
    def missing():
        raise RuntimeError("no nvJitLink")

    monkeypatch.setattr(jit, "_assembler", missing)
    name, code = kernels_of("float32", 4, 1, "float32").merge_sums.machine_code((9, 0))
    assert f".visible .entry {name}(" in code.decode()


@pytest.mark.slow
def test_warmup_leaves_nothing_to_compile():
    assert main(["warmup", "--cuda", "9.0"]) == 0
    run_python(
        """
        import numpy as np
        from device_arrays import adapter

        import bnnumba as bn
        from bnnumba.gpu import driver, jit

        def compile(*arguments, **options):
            raise AssertionError("compiled")

        jit.cuda.compile = jit.assemble = compile
        on = adapter()
        for shape in (4, 8, 64), (64, 16):
            x, weight = on(np.ones(shape, np.float32)), on(np.ones(shape[1], np.float32))
            y, saved = bn.batch_norm_training(x, weight, weight)
            bn.batch_norm_backward(y, saved)
            bn.batch_norm_inference(x, weight, weight, weight, weight)
            bn.moments(x)
        for kernel in driver.device(0).programs:
            assert kernel.machine_code((9, 0))[1].startswith(b"\\x7fELF")
        """,
        env={"BNNUMBA_TEST_DEVICE": "interpreted"},
    )
