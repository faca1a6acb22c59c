"""Everything that needs a GPU, in one command under 8 minutes: ``make gpu-check``.

Needs Python, PyTorch, CuPy and numba-cuda, and no network if pytest and the packages that bnnumba
depends on are there, too. What else is missing is left out, and said. So is what there was no time
for: another run finds compiled what this one compiled. ``--dry-run`` goes through the same steps
without a GPU, on Numba's CUDA simulator. Logs are written to ``build/gpu-check/``.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
MINUTES = 8
# Cases of each dtype, of which the ids of float32 need not speak.
DTYPES = {
    "float32": "not float64 and not float16", "float64": "float64 and not float16",
    "float16": "float16 and not bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
NOTHING_CHOSEN = 5  # what pytest returns then
# Not what calls of the driver return, which are checked: CUDA's bindings ask for entry points that
# an older driver has not, and go without.
SANITIZER = ("--error-exitcode", "9", "--report-api-errors", "no")
SMALL = "each_regime or small_call or every_layout or same_bits or parameters_of_two"


class Check:
    """The steps, each a process of its own with a log."""

    def __init__(self, logs, dry):
        self.logs, self.dry = logs, dry
        self.start = time.monotonic()
        self.failed, self.left_out, self.unfinished = [], [], []

    @property
    def left(self):
        """Seconds that remain."""
        return 60 * MINUTES - (time.monotonic() - self.start)

    def run(self, name, command, *, seconds, device=None):
        """Run a step, for at most some seconds, if they are left."""
        if self.left < seconds / 3:
            self.unfinished.append(name)
            return
        path = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        if device:
            environment["BNNUMBA_TEST_DEVICE"] = device
        if self.dry:
            environment["NUMBA_ENABLE_CUDASIM"] = "1"
        began = time.monotonic()
        path = self.logs / f"{name.replace(' ', '-')}.txt"
        with path.open("w") as log:
            # A session of its own: a sanitizer's program goes with the sanitizer.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(max(1, min(seconds, self.left)))
            except subprocess.TimeoutExpired:
                status = "out of time"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        took = time.monotonic() - began
        if status == NOTHING_CHOSEN:
            self.skip(name, "this library has no such cases")
            return
        if status == "out of time":
            self.unfinished.append(name)
        lines = path.read_text(errors="replace").strip().splitlines() or ["no output"]
        said = {0: "passed", "out of time": "out of time:"}.get(status, "FAILED")
        print(f"{said} {name} ({took:.0f} s): {lines[-1][:150]}")
        if said == "FAILED":
            self.failed.append(name)
            print(*(f"    {line[:200]}" for line in lines[-40:]), sep="\n")
        sys.stdout.flush()

    def tests(self, name, file, device, chosen, *, seconds=360, before=()):
        """Run cases of one file through one library."""
        command = [
            *before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c",
            os.devnull, "--rootdir", str(TESTS), "--noconftest", str(TESTS / file), "-k", chosen,
        ]  # fmt: skip
        return self.run(name, command, seconds=seconds, device=device)

    def skip(self, name, reason):
        """Say what is left out."""
        self.left_out.append(f"{name}: {reason}")

    def capi(self):
        """Run the embedded C library on tensors of the GPU, where it can be built."""
        lacks = [f"no {program}" for program in ("make", "cc") if not shutil.which(program)]
        lacks += [] if _has("cffi") else ["cffi is not installed"]
        include = pathlib.Path(sysconfig.get_path("include"), "Python.h")
        if not sysconfig.get_config_var("Py_ENABLE_SHARED") or not include.exists():
            lacks.append("this Python cannot be embedded")
        if lacks:
            self.skip("C library", ", ".join(lacks))
            return
        chosen = "on_a_simulated_gpu" if self.dry else "on_a_gpu and not refused"
        self.tests("C library", "test_capi.py", None, chosen, seconds=180)

    def everything(self):
        """Run all steps; those of the cases side by side, the benchmark alone."""
        libraries = {"cupy": "cupy", "torch": "torch", "numba": "numba_cuda"}
        if self.dry:
            libraries = {"simulated_torch": "torch", "simulator": "numba"}
        small = "not large_arrays" if not self.dry else f"({SMALL})"
        sanitizer = _sanitizer()
        # A CPU compiles some 190 kernels for four minutes and more: the processes of the first
        # library share that, each a dtype of it, and leave them compiled to those of the others.
        first, others = [], []
        for device, package in libraries.items():
            if not _has(package):
                self.skip(device, f"{package} is not installed")
                continue
            jobs = others if first else first
            for dtype, chosen in DTYPES.items():
                case = f"{device} {dtype}", "device_cases.py", device
                jobs.append((f"cases {case[0]}", *case[1:], f"{small} and {chosen}"))
                if device in ("cupy", "torch"):
                    large = f"large_arrays and {chosen}"
                    others.append((f"large {case[0]}", *case[1:], large))
        for jobs in (first, others):
            with ThreadPoolExecutor(max(2, min(8, (os.cpu_count() or 2) // 2))) as pool:
                list(pool.map(lambda job: self.tests(*job), jobs))
        if _has("torch"):
            device = "simulated_torch" if self.dry else "torch"
            for name, chosen in (
                ("graphs and streams", "not 32_bits"),
                ("more than 2^31", "32_bits"),
            ):
                if not (self.dry and chosen == "not 32_bits"):
                    self.tests(name, "hardware_cases.py", device, chosen, seconds=90)
        self.capi()
        if sanitizer is None or self.dry:
            self.skip("memcheck, racecheck", "a dry run" if self.dry else "no compute-sanitizer")
        else:
            device = "numba" if _has("numba_cuda") else "torch"
            tools = ("memcheck", "racecheck")
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(
                    lambda tool: self.tests(
                        tool, "device_cases.py", device, "each_regime or small_call or two_dtypes",
                        seconds=120, before=(sanitizer, "--tool", tool, *SANITIZER),
                    ), tools,
                ))  # fmt: skip
        if not _has("torch"):
            self.skip("benchmark", "torch is not installed")
            return
        if self.left < 60:
            self.unfinished.append("benchmark (python -m benchmarks.gpu)")
            return
        seconds = max(20, min(120, self.left - 60))
        command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", str(int(seconds))]
        self.run("benchmark", [*command, *(["--dry-run"] if self.dry else [])], seconds=self.left)


def _has(package):
    return importlib.util.find_spec(package) is not None


def _install():
    """Install what tests need, from the network or from a folder of wheels (PIP_FIND_LINKS)."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^]", project, re.M | re.S)[1]
    needed = re.findall(r'"(.+?)"', listed)
    needed += re.findall(r'"(pytest>.+?)"', project)[:1]
    if _has("numba_cuda"):
        needed.append("numba-cuda" + re.search(r'"numba-cuda\[cu13\](.+?)"', project)[1])
    # Which asks nobody where everything is there, and new enough.
    options = ["--quiet", "--retries", "0", "--timeout", "5"]  # without a network, say so at once
    command = [sys.executable, "-m", "pip", "install", *options, *needed]
    if subprocess.run(command, check=False).returncode:
        print("could not make sure that there is", ", ".join(needed), flush=True)
    importlib.invalidate_caches()


def _sanitizer():
    """The path of compute-sanitizer, None if it is not there."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{home}/bin")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    arguments = parser.parse_args()
    _install()
    logs = ROOT / "build" / "gpu-check"
    logs.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "bnnumba", "info"], cwd=ROOT, check=False)
    found = Check(logs, arguments.dry_run)
    found.everything()
    print(f"\n{time.monotonic() - found.start:.0f} s")
    print(*(f"left out: {line}" for line in found.left_out), sep="\n")
    print("failed: " + ", ".join(found.failed) if found.failed else "nothing failed")
    if found.unfinished:
        print("no time was left for: " + ", ".join(found.unfinished) + "; run it again")
    return 1 if found.failed or found.unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
