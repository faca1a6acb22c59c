"""Fair timing: all entrants of a case, side by side, in one process, in many short rounds.

In each round every entrant runs once unmeasured (which wakes its threads and brings the data to
where its own loop would have left it), then measured. The order changes from round to round, so
drift of the machine meets all alike, and ratios are taken round by round. pytest-benchmark gets
the measured times through `Replay`, which plays them back on a clock of its own.
"""

import gc
import itertools
import random
import statistics
import time

import pytest

from . import oracle
from .peers import Unavailable, entrants

_SAMPLE = 300e-6  # shorter calls are repeated until one sample takes this long
_SETTLE = 1e-3  # seconds in which the threads of the previous entrant fall asleep
_ROUNDS = range(5, 41)
_FEWEST = 3  # rounds of an entrant that is much slower than the others

# Largest error relative to the largest right value. bnnumba: two units in the last place of
# float32, one of the half types; moments are float64. Others: what single precision may lose.
_OWN = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_OWN_MOMENTS = 1e-12
_OTHERS = 1e-4


class Race:
    """The entrants of one case that are here and right, and, after `run`, their times."""

    def __init__(self, case, data):
        self.case = case
        self.entrants, self.errors, self.absent, self.wrong = {}, {}, {}, {}
        self.times, self.iterations = {}, {}
        for name, make in entrants(case).items():
            try:
                entrant = make(case, data)
            except Unavailable as reason:
                self.absent[name] = str(reason)
                continue
            self.entrants[name] = entrant
            self.errors[name] = error = self._check(entrant, data)
            if not error <= self._tolerance(entrant):
                self.wrong[name] = f"wrong by {error:.2g} (allowed {self._tolerance(entrant):.2g})"

    def _check(self, entrant, data):
        expected = entrant.right or (lambda: data.typed(entrant.dtype).expected(self.case.op))
        return oracle.error(entrant.results(entrant.call()), expected())

    def _tolerance(self, entrant):
        if not entrant.own:
            return _OTHERS
        return _OWN_MOMENTS if self.case.op == "moments" else _OWN[entrant.dtype]

    def run(self, budget):
        """Time everyone whose result is right, for about `budget` seconds together."""
        runners = {n: e.call for n, e in self.entrants.items() if n not in self.wrong}
        cost = {}
        for name, call in runners.items():
            once = min(_timed(call, 1) for _ in range(2))
            self.iterations[name] = max(1, int(_SAMPLE / once))
            cost[name] = once + once * self.iterations[name] + _SETTLE
        rounds = _clip(budget / sum(cost.values()))
        fair = budget / len(runners)
        last = {n: max(_FEWEST, min(rounds, _clip(fair / c))) for n, c in cost.items()}
        slow = {n for n, c in cost.items() if c > fair / _ROUNDS[0]}
        last |= dict.fromkeys(slow, _FEWEST)
        self.times = {name: [] for name in runners}
        order = list(runners)
        shuffle = random.Random(0).shuffle
        gc.collect()
        gc.disable()
        try:
            for turn in range(max(last.values())):
                shuffle(order)
                for name in order:
                    if turn < last[name]:
                        time.sleep(_SETTLE)
                        runners[name]()
                        n = self.iterations[name]
                        self.times[name].append(_timed(runners[name], n) / n)
        finally:
            gc.enable()


def _clip(rounds):
    return int(min(max(rounds, _ROUNDS[0]), _ROUNDS[-1]))


def _timed(call, iterations):
    repeat = itertools.repeat(None, iterations)
    start = time.perf_counter()
    for _ in repeat:
        call()
    return time.perf_counter() - start


class Replay:
    """A clock that moves by one recorded duration for each call."""

    now = 0.0

    @classmethod
    def timer(cls):
        return cls.now

    @classmethod
    def into(cls, benchmark, durations):
        """Give pytest-benchmark the durations as the rounds of a pedantic run."""
        recorded = iter(durations)

        def play():
            cls.now += next(recorded)

        benchmark.pedantic(play, rounds=len(durations))


replayed = pytest.mark.benchmark(timer=Replay.timer)


def ratios(times, unit):
    """Median of the ratios of two entrants' times, round by round."""
    return statistics.median(t / u for t, u in zip(times, unit, strict=False))
