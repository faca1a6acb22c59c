"""What a program pays before its first result: import, first call, compilation."""

import pytest

from . import startup
from .race import Replay, replayed

IMPORTS = ("numba", "bnnumba")
FIRST_CALLS = (
    "first forward, cached",
    "first forward and backward, cached",
    "first forward, cold",
    "first forward and backward, cold",
)


@pytest.fixture(scope="module")
def times(request, tmp_path_factory):
    """Seconds of everything in this file: {what: [seconds, ...]}."""
    smoke = request.config.option.benchmark_disable
    found = {f"import {m}": t for m, t in startup.imports(IMPORTS, 1 if smoke else 9).items()}
    found |= {name: [] for name in FIRST_CALLS}
    for _ in range(1 if smoke else 3):
        cache = tmp_path_factory.mktemp("cache")
        cold = startup.first_calls(cache)
        for _ in range(1 if smoke else 3):
            cached = startup.first_calls(cache)
            for name, seconds in zip(FIRST_CALLS, cached + cold, strict=True):
                found[name].append(seconds)
    return found


@replayed
@pytest.mark.parametrize("what", [*(f"import {m}" for m in IMPORTS), *FIRST_CALLS])
def test_startup(benchmark, times, what):
    benchmark.group = "start-up"
    benchmark.extra_info["startup"] = what
    Replay.into(benchmark, times[what])
