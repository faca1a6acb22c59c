"""The pictures of the report."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .peers import COPIES, OWN, OWN_NEW, READS

# Colour-blind safe (Okabe and Ito); the shape of the marker says it again.
_STYLE = {
    OWN: ("bnnumba", "#D55E00", "o"),
    "oneDNN blocked": ("oneDNN blocked", "#009E73", "s"),
    "oneDNN nchw": ("oneDNN nchw or nhwc", "#56B4E9", "v"),
    "oneDNN nhwc": ("oneDNN nchw or nhwc", "#56B4E9", "v"),
    "PyTorch out=": ("PyTorch, out=", "#0072B2", "^"),
    "PyTorch": ("PyTorch", "#CC79A7", "D"),
    "NumPy": ("NumPy", "#777777", "x"),
}
_HELD = {"ncs": "contiguous N, C, H, W", "rc": "channels last and 2-D"}
_TITLE = {"training": "Training forward", "backward": "Backward"}


def _bulk(races):
    """Races above 1 MB, the largest first, those whose ceiling was measured."""
    found = [r for r in races if r.nbytes >= 1e6 and r.ceiling and r.own in r.entrants]
    return sorted(found, key=lambda r: -r.nbytes)


def _label(shape):
    return "x".join(map(str, shape))


def _legend(figure):
    """One legend for all axes, each label once."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found))


def _times_a_copy(axes, races, title):
    races = _bulk(races)
    where = range(len(races))
    for name, (label, colour, marker) in _STYLE.items():
        values = [r.ratio(name, r.ceiling) for r in races]
        if any(values):
            own = name == OWN
            axes.plot(
                where, [v or float("nan") for v in values], marker, color=colour, label=label,
                markersize=9 if own else 6, zorder=3 if own else 2,
            )  # fmt: skip
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= axes.get_ylim()[1]])
    axes.set_xticks(list(where), [_label(r.shape) for r in races], rotation=45, ha="right")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=11)


def times_a_copy(results, path):
    """Training and backward, in both layouts, in times a copy."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    for row, op in zip(grid, _TITLE, strict=True):
        for axes, layout in zip(row, _HELD, strict=True):
            _times_a_copy(axes, results.of(op, layout), f"{_TITLE[op]}, {_HELD[layout]}")
        row[0].set_ylabel("time, in times of a copy of x (lower is better)")
    figure.suptitle("Batch normalization of float32, time in units of a plain copy")
    _legend(figure)
    figure.savefig(path, dpi=110)


def bandwidth(results, path):
    """Inference and moments as bytes per second, beside copy and read."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    grid = figure.subplots(2, 2)
    peers = ("NumPy", "oneDNN blocked", "oneDNN nhwc")
    own = {"inference": (OWN, "PyTorch out="), "moments": (OWN_NEW, "PyTorch")}
    for row, (op, ceilings) in zip(grid, (("inference", COPIES), ("moments", READS)), strict=True):
        for axes, layout in zip(row, _HELD, strict=True):
            races = _bulk(results.of(op, layout))
            shown = [n for n in (*own[op], *peers) if any(n in r.entrants for r in races)]
            for k, name in enumerate(shown):
                label, colour, _ = _STYLE[OWN if name == OWN_NEW else name]
                at = [i + (k + 0.5) * 0.8 / len(shown) - 0.4 for i in range(len(races))]
                speeds = [r.bandwidth(name) / 1e9 if name in r.entrants else 0 for r in races]
                axes.bar(at, speeds, 0.8 / len(shown), color=colour, label=label)
            for i, race in enumerate(races):
                speed = race.bandwidth(race.best(ceilings)) / 1e9
                label = "fastest copy (inference) or read (moments)"
                axes.hlines(speed, i - 0.45, i + 0.45, color="black", label=None if i else label)
            axes.set_xticks(
                range(len(races)), [_label(r.shape) for r in races], rotation=45, ha="right"
            )
            axes.set_ylabel("GB/s (higher is better)")
            axes.set_title(f"{op.capitalize()}, {_HELD[layout]}", fontsize=11)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
    figure.suptitle("Bytes of float32 that cannot be avoided, per second")
    _legend(figure)
    figure.savefig(path, dpi=110)


def write(results, directory, report):
    """Draw everything for a report of this name; return (file name, title) of each picture."""
    drawn = []
    for draw, what, title in (
        (times_a_copy, "times-a-copy", "Time in units of a copy"),
        (bandwidth, "bandwidth", "Bandwidth of inference and moments"),
    ):
        name = f"{report}-{what}.png"
        draw(results, directory / name)
        drawn.append((name, title))
    return drawn
