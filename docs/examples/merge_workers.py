"""Mean and variance of one file by several processes, each with a part of it.

A worker sends back a `Moments`: the count, the mean and the sum of squared deviations of
every column, a few numbers however large its part was. Merging those (Chan, Golub and
LeVeque, 1983) gives the moments of the whole, as if one process had seen it all: nothing is
approximated, and parts of different sizes weigh as much as they hold. The same works over
files, machines or days.

    python docs/examples/merge_workers.py [--workers 4]
"""

import argparse
import functools
import itertools
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

import bnnumba

ROWS, COLUMNS = 1_000_000, 16


def moments_of_part(path, begin, end):
    """What a worker does: map the file, look at its rows, return their moments."""
    return bnnumba.moments(np.load(path, mmap_mode="r")[begin:end], axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    if not 1 <= arguments.workers <= ROWS:
        parser.error(f"--workers: expected 1 to {ROWS}, got {arguments.workers}")

    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    x += np.linspace(0, 1000, COLUMNS, dtype=np.float32)  # means far from zero
    cuts = np.sort(rng.choice(ROWS, arguments.workers - 1, replace=False))  # parts of any size
    bounds = [0, *cuts.tolist(), ROWS]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, x)
        parts = [(path, begin, end) for begin, end in itertools.pairwise(bounds)]
        with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
            results = pool.starmap(moments_of_part, parts)

    for (_, begin, end), part in zip(parts, results, strict=True):
        print(f"rows {begin:7} to {end:7}: mean of the last column {part.mean[-1]:.6f}")
    merged = functools.reduce(lambda a, b: a.merge(b), results)
    whole = bnnumba.moments(x, axis=1)
    print(f"merged              : mean of the last column {merged.mean[-1]:.6f}")
    print(f"one pass            : mean of the last column {whole.mean[-1]:.6f}")

    difference = np.abs(merged.var() / whole.var() - 1).max()
    print(f"variances agree within {difference:.0e}, relative")
    np.testing.assert_array_equal(merged.count, ROWS)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.var(), whole.var(), rtol=1e-12)


if __name__ == "__main__":
    main()
