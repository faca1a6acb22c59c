"""What bnnumba set out to reach on the CPU, and what a run found."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .cases import BEYOND, OPS, SMALLEST, STREAM
from .peers import HALVES, OWN_NEW
from .results import geometric_mean

PYTORCH = ("PyTorch", "PyTorch out=")
ONEDNN = {"ncs": ("oneDNN nchw", "oneDNN blocked"), "rc": ("oneDNN nhwc",)}
_BULK = 1e6  # bytes of x below which the cost of a call, not of the work, is measured
_HELD = {"ncs": "contiguous", "rc": "channels last"}


@dataclass
class Goal:
    """One line of the table of goals."""

    what: str
    limit: float
    at_least: bool
    unit: str
    reached: float | None
    note: str = ""

    @property
    def met(self):
        if self.reached is None:
            return None
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


def _over(races, value):
    return geometric_mean([value(r) for r in races])


def _faster(results, op, layout, names, label, limit):
    """How many times faster than the fastest of `names`."""
    races = results.of(op, layout)

    def value(race):
        return race.ratio(race.best(names), race.own)

    everywhere = _over(races, value)
    note = f"all shapes: {everywhere:.2f}" if everywhere else ""
    reached = _over([r for r in races if r.nbytes >= _BULK], value)
    return Goal(f"{op}, {_HELD[layout]}: faster than {label}", limit, True, "x", reached, note)


def _of_ceiling(results, op, layout, limit, where, label):
    """Time in times of a copy."""
    races = [r for r in results.of(op, layout) if where(r)]
    found = [v for r in races if (v := r.ratio(r.own, r.ceiling)) is not None]
    note = f"worst: {max(found):.2f}" if found else ""
    what = f"{op}, {_HELD[layout]}: times a copy, {label}"
    return Goal(what, limit, False, "copies", geometric_mean(found), note)


def _moments(results, layout):
    races = [r for r in results.of("moments", layout) if r.nbytes >= _BULK]
    found = [v for r in races if (v := r.ratio(r.ceiling, r.own)) is not None]
    note = f"worst: {min(found):.2f}" if found else ""
    what = f"moments, {_HELD[layout]}: speed of reading alone"
    return Goal(what, 0.85, True, "of it", geometric_mean(found), note)


def _halves(results, dtype):
    races = [r for r in results.races if r.large]

    def value(race):
        return race.ratio(f"bnnumba {dtype}", race.own)

    parts = {
        f"{op} {layout}": _over([r for r in races if (r.op, r.layout) == (op, layout)], value)
        for op in OPS
        for layout in _HELD
    }
    note = ", ".join(f"{name} {part:.2f}" for name, part in parts.items() if part)
    what = f"{dtype}, above 32 MB: time in times of float32"
    return Goal(what, 0.6, False, "x", _over(races, value), note)


def _small_call(results, op, limit):
    race = results.find(op, "ncs", SMALLEST)
    if race is None or OWN_NEW not in race.entrants:
        return Goal(f"{op} of 4x8x4x4, the whole call", limit, False, "us", None)
    peer = race.entrants.get("PyTorch")
    note = f"PyTorch: {1e6 * peer.median:.1f}" if peer else ""
    reached = 1e6 * race.entrants[OWN_NEW].median
    return Goal(f"{op} of 4x8x4x4, the whole call", limit, False, "us", reached, note)


def _startup(results):
    medians = {what: statistics.median(times) for what, times in results.startup.items()}
    own, base = medians.get("import bnnumba"), medians.get("import numba")
    note = f"{own:.2f} s; numba: {base:.2f} s" if own else ""
    yield Goal(
        "import bnnumba, in times of import numba", 1.3, False, "x", own and own / base, note
    )
    cached, cold = "first forward, cached", "first forward and backward, cold"
    yield Goal("first call of a process, from the cache", 0.5, False, "s", medians.get(cached))
    yield Goal("forward and backward without a cache", 6.0, False, "s", medians.get(cold))


def _memory(results):
    grown = [
        (m["peaks"][1] - m["peaks"][0]) / (m["sizes"][1] - m["sizes"][0]) for m in results.memory
    ]
    reached = 100 * max(0.0, *grown) if grown else None
    what = "temporary memory besides the output, growth in % of x's"
    return Goal(what, 2.0, False, "%", reached, "partial sums per block of x, no copies")


def goals(results):
    """All goals, with what was reached."""
    results = results.without(BEYOND)
    large: Callable = lambda r: r.large  # noqa: E731
    bulk: Callable = lambda r: r.nbytes >= _BULK  # noqa: E731
    faster = [
        ("training", "ncs", ("PyTorch out=",), "PyTorch `out=`", 4.0),
        ("training", "ncs", PYTORCH, "PyTorch's better way", 4.0),
        ("training", "ncs", ONEDNN["ncs"], "oneDNN's best layout", 1.1),
        ("backward", "ncs", ("PyTorch out=",), "PyTorch `out=`", 3.0),
        ("backward", "ncs", PYTORCH, "PyTorch's better way", 3.0),
        ("backward", "ncs", ONEDNN["ncs"], "oneDNN's best layout", 1.2),
        ("training", "rc", PYTORCH, "PyTorch's better way", 1.3),
        ("training", "rc", ONEDNN["rc"], "oneDNN nhwc", 1.3),
        ("backward", "rc", PYTORCH, "PyTorch's better way", 1.3),
        ("backward", "rc", ONEDNN["rc"], "oneDNN nhwc", 1.3),
    ]
    found = [_faster(results, *row) for row in faster]
    found += [
        _of_ceiling(results, "training", "ncs", 1.2, large, "above 32 MB"),
        _of_ceiling(results, "backward", "ncs", 1.8, large, "above 32 MB"),
        _of_ceiling(results, "training", "rc", 1.6, large, "above 32 MB"),
        _of_ceiling(results, "inference", "ncs", 1.05, bulk, "above 1 MB"),
        _of_ceiling(results, "inference", "rc", 1.05, bulk, "above 1 MB"),
        _moments(results, "ncs"),
        _moments(results, "rc"),
    ]
    stream = results.find("moments", "rc", STREAM)
    ratio = stream and stream.ratio("partial_fit", OWN_NEW)
    found.append(Goal("moments of 200000x128: faster than partial_fit", 20, True, "x", ratio))
    found += [_halves(results, dtype) for dtype in HALVES]
    found += [_small_call(results, "training", 6), _small_call(results, "backward", 8)]
    return [*found, *_startup(results), _memory(results)]
