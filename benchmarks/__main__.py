"""Run all benchmarks and write the report: ``python -m benchmarks``."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from . import goals, plots, report, results

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_REPORT = _ROOT / "docs" / "benchmarks"


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--into", type=pathlib.Path, default=_REPORT, help="directory of the report"
    )
    parser.add_argument("--race-seconds", type=float, default=2.0, help="time for each race")
    parser.add_argument("-k", dest="select", default="", help="only these, as pytest's -k")
    parser.add_argument(
        "--redraw", action="store_true", help="run nothing, write the reports of cpu-*.json again"
    )
    return parser.parse_args()


def _measure(arguments):
    """Run pytest-benchmark; its exit status, and what it measured."""
    with tempfile.TemporaryDirectory() as scratch:
        measured = pathlib.Path(scratch) / "pytest-benchmark.json"
        command = [
            sys.executable, "-m", "pytest", "benchmarks", "--benchmark-quiet", "-k",
            arguments.select, f"--benchmark-json={measured}",
            f"--race-seconds={arguments.race_seconds}",
        ]  # fmt: skip
        status = subprocess.run(command, cwd=_ROOT).returncode
        if not measured.exists():
            sys.exit(status or 1)
        return status, results.compact(json.loads(measured.read_text()))


def _write(found, into):
    """Write one machine's report, and print what it says of the goals."""
    name = report.name(found)
    drawn = plots.write(found, into, name)
    page = into / f"{name}.md"
    page.write_text(report.markdown(found, drawn))
    for goal in goals.goals(found):
        reached = "not measured" if goal.reached is None else f"{goal.reached:.3g} {goal.unit}"
        sign = ">=" if goal.at_least else "<="
        mark = {None: " ", True: "+", False: "-"}[goal.met]
        print(f"{mark} {goal.what}: {reached} (goal {sign} {goal.limit:g})")
    print(f"wrote {page}")


def main():
    arguments = _arguments()
    into, status = arguments.into, 0
    into.mkdir(parents=True, exist_ok=True)
    if arguments.redraw:
        for path in report.recorded(into):
            _write(results.load(path), into)
    else:
        status, raw = _measure(arguments)
        found = results.Results(raw)
        results.save(raw, into / f"{report.name(found)}.json")
        _write(found, into)
    if into.resolve() == _REPORT:
        report.write_readme(
            [results.load(path) for path in report.recorded(into)], _ROOT / "README.md"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
