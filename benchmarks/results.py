"""The results of a run: from pytest-benchmark's JSON to the races that the reports speak of."""

import copy
import json
import math
import re
import statistics
from dataclasses import dataclass, field

from .cases import LARGE
from .peers import COPIES, OWN, OWN_NEW, READS

_DIGITS = 4


@dataclass
class Timed:
    """One entrant's times in one race, in seconds."""

    times: list[float]
    error: float
    detail: str = ""

    @property
    def median(self):
        return statistics.median(self.times)

    @property
    def scattered(self):
        """Whether the middle half of the rounds differs more than twofold: no median tells much."""
        if len(self.times) < 4:
            return False
        low, _, high = statistics.quantiles(self.times, n=4)
        return high > 2 * low


@dataclass
class Outcome:
    """One race: all entrants of one operation, layout and shape."""

    op: str
    layout: str
    shape: tuple[int, ...]
    traffic: int
    entrants: dict[str, Timed] = field(default_factory=dict)

    @property
    def nbytes(self):
        return 4 * math.prod(self.shape)

    @property
    def large(self):
        return self.nbytes > LARGE

    @property
    def own(self):
        """The bnnumba entrant that peers are compared with: ``out=`` where there is one."""
        return OWN if OWN in self.entrants else OWN_NEW

    @property
    def ceiling(self):
        """The fastest copy (or read, for moments) of the same bytes in the same race."""
        return self.best(READS if self.op == "moments" else COPIES)

    def best(self, names):
        """The fastest of these entrants, or None where none ran."""
        here = [name for name in names if name in self.entrants]
        return min(here, key=lambda name: self.entrants[name].median, default=None)

    def ratio(self, name, unit):
        """Time of one entrant in times of another: the median of the rounds' ratios, or None."""
        if name not in self.entrants or unit not in self.entrants:
            return None
        pairs = zip(self.entrants[name].times, self.entrants[unit].times, strict=False)
        return statistics.median(a / b for a, b in pairs)

    def bandwidth(self, name):
        """Bytes per second, counting only those that cannot be avoided."""
        return self.traffic / self.entrants[name].median


class Results:
    """Everything that a run found."""

    def __init__(self, raw):
        self.environment = raw["environment"]
        self.startup = raw["startup"]
        self.memory = raw["memory"]
        self.races = []
        for race in raw["races"]:
            outcome = Outcome(race["op"], race["layout"], tuple(race["shape"]), race["traffic"])
            for name, e in race["entrants"].items():
                outcome.entrants[name] = Timed(e["times"], e["error"], e["detail"])
            self.races.append(outcome)

    def without(self, shapes):
        """The same results but for the races on some shapes."""
        rest = copy.copy(self)
        rest.races = [race for race in self.races if race.shape not in shapes]
        return rest

    def of(self, op, layout):
        """The races of one operation and layout."""
        return [r for r in self.races if (r.op, r.layout) == (op, layout)]

    def find(self, op, layout, shape):
        """One race, or None."""
        return next((r for r in self.of(op, layout) if r.shape == shape), None)


def _rounded(seconds):
    return [float(f"{s:.{_DIGITS}g}") for s in seconds]


def compact(report):
    """What is worth keeping of pytest-benchmark's report: every time, the checks, the machine."""
    races, startup, memory = {}, {}, []
    for benchmark in report["benchmarks"]:
        info, times = benchmark["extra_info"], _rounded(benchmark["stats"]["data"])
        if "startup" in info:
            startup[info["startup"]] = times
        elif "memory" in info:
            memory.append({k: info[k] for k in ("memory", "layout", "sizes", "peaks")})
        else:
            head = {k: info[k] for k in ("op", "layout", "shape", "traffic")}
            race = races.setdefault(benchmark["group"], {**head, "entrants": {}})
            race["entrants"][info["entrant"]] = {
                "times": times, "calls_per_time": info["iterations"],
                "error": float(f"{info['error']:.2g}"), "detail": info["detail"],
            }  # fmt: skip
    return {
        "environment": report["machine_info"]["bnnumba"],
        "races": list(races.values()),
        "startup": startup,
        "memory": memory,
    }


def geometric_mean(values):
    """The geometric mean of those that are there, or None."""
    there = [v for v in values if v is not None]
    return statistics.geometric_mean(there) if there else None


def load(path):
    """Results as `save` wrote them."""
    with open(path) as file:
        return Results(json.load(file))


def save(raw, path):
    """Write JSON with each list of numbers on one line."""
    text = json.dumps(raw, indent=1)
    flat = re.sub(r"\[\s+([-+.\de,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(flat + "\n")
