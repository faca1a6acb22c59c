"""Standardize a file that is larger than the memory we allow ourselves.

Two passes over a memory-mapped file, chunk by chunk. The first collects mean and variance of
every column, the second writes (x - mean) / std to another file. A third reads the result
back to check it. How the file is cut into chunks changes nothing but the last digits.

    python docs/examples/streaming_scaler.py [--megabytes 256] [--budget 16]
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

import bnnumba

COLUMNS = 64
MEGABYTE = 1 << 20


def chunks(rows, budget):
    """Slices of as many rows as fit the budget, in bytes: one chunk read and one written."""
    step = max(1, budget // (2 * COLUMNS * 4))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def write_measurements(path, rows, budget):
    """A file of float32 columns, each with an offset and a scale of its own."""
    rng = np.random.default_rng(0)
    offset, scale = rng.uniform(-1000, 1000, COLUMNS), rng.uniform(0.1, 10, COLUMNS)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
    for part in chunks(rows, budget // 4):  # the generator works in float64, with a temporary
        file[part] = offset + scale * rng.standard_normal((part.stop - part.start, COLUMNS))


def collect(path, budget):
    """First pass: the moments of every column."""
    file = np.load(path, mmap_mode="r")
    moments = bnnumba.RunningMoments(COLUMNS)
    for part in chunks(len(file), budget):
        moments.update(file[part], axis=1)
    return moments


def standardize(source, target, moments, budget):
    """Second pass: straight from one file into the other."""
    x = np.load(source, mmap_mode="r")
    y = np.lib.format.open_memmap(target, "w+", x.dtype, x.shape)
    mean, var = moments.mean, moments.var()
    for part in chunks(len(x), budget):
        bnnumba.batch_norm_inference(x[part], mean, var, eps=0.0, axis=1, out=y[part])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=256, help="size of the file")
    parser.add_argument("--budget", type=int, default=16, help="memory for arrays, in megabytes")
    arguments = parser.parse_args()
    budget = arguments.budget * MEGABYTE
    rows = arguments.megabytes * MEGABYTE // (COLUMNS * 4)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "measurements.npy"), Path(folder, "standardized.npy")
        write_measurements(source, rows, budget)
        print(f"{rows} rows of {COLUMNS} columns, {arguments.megabytes} MB in a file")

        # Once over compiles, so that the seconds below are the work alone.
        standardize(source, target, collect(source, budget), budget)
        tracemalloc.start()  # counts what NumPy allocates; mapped pages are the system's
        start = time.perf_counter()
        moments = collect(source, budget)
        collected = time.perf_counter()
        standardize(source, target, moments, budget)
        done = time.perf_counter()
        peak = tracemalloc.get_traced_memory()[1] / MEGABYTE
        tracemalloc.stop()
        print(f"mean and variance: {collected - start:.2f} s, writing: {done - collected:.2f} s")
        print(f"arrays in memory: at most {peak:.2f} MB of the {arguments.budget} MB allowed")

        result = collect(target, budget)
        mean, std = np.abs(result.mean).max(), np.abs(np.sqrt(result.var()) - 1).max()
        print(f"largest mean of a column: {mean:.1e}, largest |std - 1|: {std:.1e}")
        if not (mean < 1e-4 and std < 1e-5 and peak < arguments.budget):
            raise SystemExit("the result is not standardized, or took more memory than allowed")


if __name__ == "__main__":
    main()
