"""Fair timing: all entrants of a case, side by side, in one process, in many short rounds.

In each round every entrant runs unmeasured (which wakes its threads and brings data and code to
where its own loop would have left them), then measured. The order changes from round to round, so
drift of the machine meets all alike, and ratios are taken round by round. pytest-benchmark gets
the measured times through `Replay`, which plays them back on a clock of its own.
"""

import gc
import itertools
import random
import statistics
import time

import numpy as np
import pytest

from . import oracle
from .peers import Unavailable, entrants

_SAMPLE = 500e-6  # shorter calls are repeated until one sample takes this long
# Before a sample, calls that are not measured take this long (at least one): after others had used
# the caches, a call of 90 us took 336, 147 and 103 at first, Python's part of it no less.
_WARM_UP = 2e-3
_SETTLE = 1e-3  # seconds in which the threads of the previous entrant fall asleep
_ROUNDS = range(7, 42)
_SLOW, _FEWEST = 5, 3  # an entrant this many times slower than the median one gets few rounds

# Largest error relative to the largest right value. bnnumba: two units in the last place of
# float32, one of the half types; moments are float64. Others: what careless single precision loses.
_OWN = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_OWN_MOMENTS = 1e-12
_OTHERS = 1e-3


class Race:
    """The entrants of one case that are here and right, and, after `run`, their times."""

    def __init__(self, case, data):
        self.case = case
        self.entrants, self.errors, self.absent, self.wrong = {}, {}, {}, {}
        self.times, self.iterations = {}, {}
        for name, make in entrants(case).items():
            try:
                entrant = make(case, data)
                self.errors[name] = error = self._check(entrant, data)
            except Unavailable as reason:
                self.absent[name] = str(reason)
            except Exception as failure:  # one entrant's, not the whole race's
                self.wrong[name] = repr(failure)
            else:
                self.entrants[name] = entrant
                allowed = self._tolerance(entrant)
                if not error <= allowed:
                    self.wrong[name] = f"wrong by {error:.2g} (allowed {allowed:.2g})"

    def _check(self, entrant, data):
        typed = data.typed(entrant.dtype)
        typed.out.fill(np.nan)  # what the entrant before wrote there
        expected = entrant.right or (lambda: typed.expected(self.case.op))
        return oracle.error(entrant.results(entrant.call()), expected())

    def _tolerance(self, entrant):
        if not entrant.own:
            return _OTHERS
        return _OWN_MOMENTS if self.case.op == "moments" else _OWN[entrant.dtype]

    def run(self, budget):
        """Time everyone whose result is right, for about `budget` seconds together."""
        runners = {n: e.call for n, e in self.entrants.items() if n not in self.wrong}
        cost, warm_up = {}, {}
        for name, call in runners.items():
            once = min(_timed(call, 1) for _ in range(2))
            self.iterations[name] = max(1, int(_SAMPLE / once))
            warm_up[name] = max(1, int(_WARM_UP / once))
            cost[name] = once * (warm_up[name] + self.iterations[name]) + _SETTLE
        typical = statistics.median(cost.values())
        slow = {n for n, c in cost.items() if c > _SLOW * typical and not self.entrants[n].own}
        together = sum(c for name, c in cost.items() if name not in slow)
        rounds = int(min(max(budget / together, _ROUNDS[0]), _ROUNDS[-1]))
        last = {name: _FEWEST if name in slow else rounds for name in runners}
        self.times = {name: [] for name in runners}
        order = list(runners)
        shuffle = random.Random(0).shuffle
        gc.collect()
        gc.disable()
        try:
            for turn in range(rounds):
                shuffle(order)
                for name in order:
                    if turn < last[name]:
                        time.sleep(_SETTLE)
                        n = self.iterations[name]
                        _timed(runners[name], warm_up[name])
                        self.times[name].append(_timed(runners[name], n) / n)
        finally:
            gc.enable()


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
