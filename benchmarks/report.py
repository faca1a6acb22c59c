"""The reports: a page in docs/benchmarks/ for each kind of CPU, and the short table of the README.

CPUs are told apart by their vectors, as what they can reach is: a run writes to the page of its own
kind and leaves the others.
"""

import re

from .cases import BEYOND, IMAGES, STEP, STREAM, TRACKED
from .goals import ONEDNN, PYTORCH, goals
from .peers import COPIES, HALVES, OWN, OWN_C, OWN_KERAS, OWN_NEW, READS
from .results import geometric_mean

# What the widest vectors of a CPU are called, by the flag that tells of them, the widest first.
_KINDS = {"avx512f": "AVX-512", "avx2": "AVX2"}
_TITLES = {
    ("training", "ncs"): "Training forward, contiguous",
    ("backward", "ncs"): "Backward, contiguous",
    ("inference", "ncs"): "Inference, contiguous",
    ("moments", "ncs"): "Moments, contiguous",
    ("training", "rc"): "Training forward, channels last and 2-D",
    ("backward", "rc"): "Backward, channels last and 2-D",
    ("inference", "rc"): "Inference, channels last and 2-D",
    ("moments", "rc"): "Moments, channels last and 2-D",
    (TRACKED, "ncs"): "Training forward with running statistics, small",
    (STEP, "ncs"): "Training step of a module, contiguous",
    (STEP, "rc"): "Training step of a module, channels last",
}

_HOW_TO_READ = """\
Every result was compared with a float64 reference before it was timed; whoever was wrong has no
time here. All entrants of a row ran side by side in one process, on the same number of threads, in
many short rounds in changing order, each after some calls of its own that leave in the caches what
fits; a time is the median, a ratio the median of the rounds' ratios. `out=` writes to an existing
output, the same for all, "new" makes one in each call. *Times a copy* is the time in units of the
fastest plain copy of x (two threads, with and without streaming stores, or one thread) in the same
race, for moments of the fastest read. *GB/s* counts only the bytes that cannot be avoided: x once,
y once; x, dy and dx for backward. The columns of peers say how many times longer a peer took than
bnnumba: `out=` peers against bnnumba with `out=`, "new" peers against bnnumba making a new output.
A ~ marks what is made of times that differ more than twofold in the middle half of the rounds.
oneDNN writes to an existing output; its *blocked* layout is nChw16c (nChw8c without AVX-512, and
where the channels do not fill blocks of 16), which no array library uses. A training step is
forward and backward under autograd, of `bnnumba.adapters.torch.BatchNorm2d` and of
`torch.nn.BatchNorm2d`, running statistics included, "in Keras" of
`bnnumba.adapters.keras.BatchNormalization`, with which Keras's own layer is compared. Where the
table is of training with running statistics, the columns are bnnumba's functions on tensors, its
layer, and PyTorch's.
"""


def seconds(value):
    """A time with three digits and the unit that fits."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 0.9995 or unit == "us":
            return f"{_digits(value * scale)} {unit}"
    raise AssertionError


def _digits(value):
    """A number with about three digits."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _time(race, name):
    """A time of the tables, marked where it is scattered."""
    found = race.entrants.get(name)
    return "-" if found is None else seconds(found.median) + ("~" if found.scattered else "")


def _ratio(race, name, unit):
    """A ratio of the tables, marked where one of the two times is scattered."""
    value = race.ratio(name, unit)
    scattered = value and any(race.entrants[n].scattered for n in (name, unit))
    return _digits(value) + ("~" if scattered else "")


def _shape(shape):
    return "x".join(map(str, shape))


def _table(head, rows):
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _peers(races):
    """Columns for peers: (head, entrant, the bnnumba entrant it is compared with)."""
    here = {name for race in races for name in race.entrants}
    own = races[0].own
    columns = [
        ("PyTorch out=", "PyTorch out=", OWN),
        ("PyTorch new", "PyTorch", OWN_NEW),
        *((name, name, own) for name in ("oneDNN nchw", "oneDNN blocked", "oneDNN nhwc")),
        ("from C", OWN_C, own),
        ("NumPy", "NumPy", OWN_NEW),
        ("partial_fit", "partial_fit", OWN_NEW),
        ("RunningMoments", "bnnumba RunningMoments", OWN_NEW),
        ("on tensors", "bnnumba on tensors", OWN_NEW),
        ("BatchNorm", "bnnumba layer", OWN_NEW),
        ("nn.BatchNorm2d", "PyTorch layer", OWN_NEW),
        ("in Keras", OWN_KERAS, OWN_NEW),
        ("Keras", "Keras", OWN_KERAS),
    ]
    if own == OWN_NEW:
        columns = [(h.replace(" new", ""), *rest) for h, *rest in columns]
    return [c for c in columns if c[1] in here]


def _race_table(races):
    columns = _peers(races)
    fresh = races[0].own == OWN
    ceiling = "times a read" if races[0].op == "moments" else "times a copy"
    head = ["N x C x H x W", "bnnumba", ceiling, "GB/s"]
    head += ["new output"] if fresh else []
    rows = []
    for race in races:
        if race.own not in race.entrants:
            continue
        row = [_shape(race.shape), _time(race, race.own), _ratio(race, race.own, race.ceiling)]
        row.append(f"{race.bandwidth(race.own) / 1e9:.1f}")
        if fresh:
            row.append(_time(race, OWN_NEW))
        rows.append(row + [_ratio(race, name, unit) for _, name, unit in columns])
    return _table([*head, *(h for h, _, _ in columns)], rows)


def _halves_table(races):
    rows = [
        [race.op, race.layout, _shape(race.shape), seconds(race.entrants[race.own].median)]
        + [_digits(race.ratio(f"bnnumba {dtype}", race.own)) for dtype in HALVES]
        for race in races
        if race.large and race.own in race.entrants and f"bnnumba {HALVES[0]}" in race.entrants
    ]
    return _table(["op", "layout", "shape", "float32", *HALVES], rows)


def _ceilings_table(races):
    rows = []
    for race in races:
        names = READS if race.op == "moments" else COPIES
        found = [race.entrants[n].median if n in race.entrants else None for n in names]
        moved = race.nbytes * (1 if race.op == "moments" else 2)
        best = f"{moved / min(found) / 1e9:.1f}"
        rows.append([_shape(race.shape), *(seconds(t) for t in found), best])
    return _table(["shape", *(READS if races[0].op == "moments" else COPIES), "best, GB/s"], rows)


def _errors_table(results):
    """The largest error of each entrant in each operation, over all shapes and layouts."""
    ops = list(dict.fromkeys(race.op for race in results.races))
    worst = {}
    for race in results.races:
        for name, entrant in race.entrants.items():
            if name not in (*COPIES, *READS):
                errors = worst.setdefault(name, dict.fromkeys(ops, 0.0))
                errors[race.op] = max(errors[race.op], entrant.error)
    rows = [
        [name, *(f"{errors[op]:.1e}" if errors[op] else "-" for op in ops)]
        for name, errors in sorted(worst.items())
    ]
    return _table(["", *ops], rows)


def _goals_table(results):
    rows = []
    for goal in goals(results):
        sign = ">=" if goal.at_least else "<="
        met = {None: "not measured", True: "yes", False: "**no**"}[goal.met]
        reached = "-" if goal.reached is None else f"{goal.reached:.4g} {goal.unit}"
        rows.append([goal.what, f"{sign} {goal.limit:g} {goal.unit}", reached, met, goal.note])
    return _table(["what", "goal", "reached", "met", "more"], rows)


def _machine(environment):
    cpu = environment["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{cpu['model']} ({cpu['vectors']}, caches {cpu['second_level_cache']} and "
        f"{cpu['last_level_cache']}), "
        f"{environment['threads']} threads, {environment['system']}; {versions}; Numba threading "
        f"layer {environment['threading_layer']}; commit {environment['commit']}, "
        f"{environment['date']}."
    )


def _vectors(results):
    """How the vectors of the machine are called, or its architecture."""
    found = results.environment["cpu"]["vectors"]
    return _KINDS.get(found, results.environment["system"].split()[-1])


def name(results):
    """The file name of a report, without its ending."""
    return f"cpu-{_vectors(results).lower()}"


def recorded(directory):
    """The files of all reports, those of the widest vectors first."""
    order = [f"cpu-{kind.lower()}" for kind in _KINDS.values()]
    paths = sorted(directory.glob("cpu-*.json"))
    return sorted(paths, key=lambda p: order.index(p.stem) if p.stem in order else len(order))


def markdown(results, plots):
    """The whole report."""
    parts = [
        f"# CPU benchmarks, {_vectors(results)}",
        "Written by `make bench`. " + _machine(results.environment),
        "## Goals and what was reached",
        "Ratios are geometric means over the shapes above 1 MB, unless the line says otherwise. "
        f"{', '.join(map(_shape, BEYOND))} are not among them.",
        _goals_table(results),
        *(f"![{title}]({name})" for name, title in plots),
        "## How to read the tables",
        _HOW_TO_READ.strip(),
    ]
    for (op, layout), title in _TITLES.items():
        races = results.of(op, layout)
        if races:
            parts += [f"## {title}", _race_table(races)]
    halves = [r for r in results.races if r.large]
    if halves:
        parts += ["## Half precision", "Time in times of float32, large inputs."]
        parts.append(_halves_table(halves))
    parts += [
        "## Errors",
        "The largest difference from the float64 reference in any of an operation's results "
        "(y, mean and variance; dx, dweight and dbias), over the largest value of that result. "
        "The data are normal with mean 0.5 and variance 1: easy ones.",
        _errors_table(results),
    ]
    for op, title in (("inference", "Copy"), ("moments", "Read")):
        races = results.of(op, "rc")
        if races:
            parts += [f"## {title} ceilings", _ceilings_table(races)]
    return "\n\n".join(parts) + "\n"


def _against(race, peers):
    """The ratio to the best of some peers, each compared with bnnumba's output of the same kind."""
    pairs = [(name, unit) for _, name, unit in _peers([race]) if name in peers]
    best = min((p for p in pairs if race.ratio(*p)), key=lambda p: race.ratio(*p), default=None)
    return "-" if best is None else _ratio(race, *best)


def _short_table(results):
    def row(label, race, names):
        if race is None or race.own not in race.entrants:
            return None
        return [
            label,
            _shape(race.shape),
            _time(race, race.own),
            _time(race, race.ceiling),
            *(_against(race, group) for group in names),
        ]

    shape = IMAGES[2]
    rows = [
        row(title, results.find(op, layout, shape), (PYTORCH, ONEDNN[layout], ("NumPy",)))
        for (op, layout), title in _TITLES.items()
        if op in ("training", "backward", "inference")
    ]
    stream = results.find("moments", "rc", STREAM)
    rows.append(row("Moments, 2-D", stream, (("PyTorch",), (), ("NumPy",))))
    head = ["float32", "shape", "bnnumba `out=`", "copy (or read)", "PyTorch", "oneDNN", "NumPy"]
    text = _table(head, [r for r in rows if r])
    ratio = stream and stream.ratio("partial_fit", stream.own)
    more = f"scikit-learn's `partial_fit` takes {_digits(ratio)} times as long as the moments. "
    more = more if ratio else ""
    return (
        f"{text}\n\nThe last three columns say how many times as long each peer took, in its "
        "fastest variant (oneDNN in its own blocked layout where that is faster). One that makes "
        "a new output is compared with bnnumba making one, one that writes to an existing output "
        f"with bnnumba's `out=`. A ~ marks what is made of scattered times. {more}"
        f"Measured side by side on {results.environment['threads']} threads ({_cpu(results)}); all "
        f"shapes, peers and goals: {_link(results)}."
    )


def _cpu(results):
    return f"{results.environment['cpu']['model']} with {_vectors(results)}"


def _link(results):
    page = f"docs/benchmarks/{name(results)}.md"
    return f"[{page}]({page})"


def _in_short(results):
    """A sentence on another machine than that of the table."""
    parts, usual = [], results.without(BEYOND)
    for (op, layout), title in _TITLES.items():
        if op in ("training", "backward"):
            races = [r for r in usual.of(op, layout) if r.nbytes >= 1e6]
            peers = (
                _digits(geometric_mean([r.ratio(r.best(group), r.own) for r in races]))
                for group in (PYTORCH, ONEDNN[layout])
            )
            parts.append(f"{title[0].lower()}{title[1:]} {' and '.join(peers)}")
    return (
        f"On {_cpu(results)}, PyTorch, whichever way it was faster, and oneDNN took this many "
        "times as long as bnnumba with `out=` (geometric means): "
        f"{'; '.join(parts)} ({_link(results)})."
    )


def write_readme(reports, path):
    """Rewrite the region of the README between its markers, where it has them."""
    begin, end = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
    text = path.read_text() if path.exists() else ""
    if reports and begin in text and end in text:
        said = "\n\n".join([_short_table(reports[0]), *map(_in_short, reports[1:])])
        region = f"{begin}\n{said}\n{end}"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        path.write_text(re.sub(pattern, lambda _: region, text, flags=re.DOTALL))
