"""Where and with what a run was made."""

import contextlib
import datetime
import importlib.metadata
import pathlib
import platform
import subprocess

from . import THREADS, onednn

_PACKAGES = (
    "numpy", "numba", "llvmlite", "ml_dtypes", "tbb", "torch", "keras", "onednn-cpu-gomp",
    "scikit-learn",
)  # fmt: skip


def _versions():
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    with contextlib.suppress(ImportError):
        found["oneDNN"] = onednn.version()
    return found


def _cpu():
    """The processor's name, and its caches as the system tells them."""
    with open("/proc/cpuinfo") as info:
        lines = dict(line.split(":", 1) for line in info if ":" in line)
    named = {key.strip(): value.strip() for key, value in lines.items()}
    vectors = next((v for v in ("avx512f", "avx2") if v in named.get("flags", "").split()), "")
    caches = _caches()
    return {
        "model": named.get("model name", platform.processor()),
        "vectors": vectors,
        "second_level_cache": caches.get(2, "unknown"),
        "last_level_cache": caches[max(caches)] if caches else "unknown",
    }


def _caches():
    """Sizes by level, as the kernel gives them; of the first level, either of the two."""
    # "cache size" of /proc/cpuinfo is that of the second level on some processors.
    caches = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    return {int((c / "level").read_text()): (c / "size").read_text().strip() for c in caches}


def _git(*args):
    done = subprocess.run(["git", *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def describe():
    """Everything that a reader of the numbers needs to know, as a dictionary."""
    import numba

    try:
        layer = numba.threading_layer()
    except ValueError:  # nothing ran in parallel
        layer = "none"
    changed = _git("status", "--porcelain", "--", "bnnumba", "benchmarks")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else ""),
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": THREADS,
        "threading_layer": layer,
        "versions": _versions(),
    }
