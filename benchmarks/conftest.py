"""Options of ``pytest benchmarks``; with ``--benchmark-disable`` all runs once, on small shapes."""

import functools

import pytest

from . import environment
from .cases import cases, data
from .peers import entrants
from .race import Race


def pytest_addoption(parser):
    group = parser.getgroup("bnnumba benchmarks")
    group.addoption(
        "--race-seconds", type=float, default=2.0,
        help="time to measure all entrants of one operation, layout and shape (default: 2.0)",
    )  # fmt: skip


def pytest_generate_tests(metafunc):
    if "entrant" in metafunc.fixturenames:
        smoke = metafunc.config.option.benchmark_disable
        found = [(case, name) for case in cases(smoke) for name in entrants(case)]
        ids = [f"{case.name}-{name}".replace(" ", "-") for case, name in found]
        metafunc.parametrize(("case", "entrant"), found, ids=ids)


@pytest.fixture(scope="session")
def race_of(request):
    """A function of a case: its race, checked, and run unless benchmarks are disabled."""

    # One at a time: the entrants of a large case hold a gigabyte.
    @functools.lru_cache(maxsize=1)
    def race_of(case):
        race = Race(case, data(case.layout, case.shape))
        if not request.config.option.benchmark_disable:
            race.run(request.config.option.race_seconds)
        return race

    return race_of


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["bnnumba"] = environment.describe()
