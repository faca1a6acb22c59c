"""Benchmarks of bnnumba beside its peers on the CPU: ``python -m benchmarks`` (see its ``--help``).

Importing this package, before any array library starts its threads, gives all of them the same
number of threads: ``NUMBA_NUM_THREADS`` where it is set, else every CPU this process may use.
"""

import os

THREADS = int(os.environ.get("NUMBA_NUM_THREADS") or len(os.sched_getaffinity(0)))

for _name in ("NUMBA", "OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_name}_NUM_THREADS"] = str(THREADS)

# GNU OpenMP threads spin for some 20 ms after their last loop and would slow whoever is timed
# next. Half a millisecond is longer than any pause inside a timed call, so nobody is slowed.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
