"""Every entrant on every case: right first, then timed."""

import pytest

from .race import Replay, replayed


@replayed
def test_batch_norm(benchmark, race_of, case, entrant):
    race = race_of(case)
    if entrant in race.absent:
        pytest.skip(race.absent[entrant])
    if entrant in race.wrong:
        result = pytest.fail if entrant.startswith("bnnumba") else pytest.skip
        result(f"{entrant}: {race.wrong[entrant]}")
    runner = race.entrants[entrant]
    benchmark.group = case.name
    benchmark.extra_info.update(
        op=case.op, layout=case.layout, shape=case.shape, entrant=entrant,
        error=race.errors[entrant], detail=runner.detail, traffic=case.traffic,
    )  # fmt: skip
    if benchmark.disabled:
        benchmark.pedantic(runner.call)
    else:
        benchmark.extra_info["iterations"] = race.iterations[entrant]
        Replay.into(benchmark, race.times[entrant])
