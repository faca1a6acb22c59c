"""Start-up times, each in a process of its own: imports, the first call, compilation."""

import os
import subprocess
import sys

_IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""

_FIRST_CALLS = """
import time
import numpy as np
import bnnumba as bn
x = np.random.default_rng(0).standard_normal((8, 32, 16, 16), dtype=np.float32)
w, b = np.ones(32, np.float32), np.zeros(32, np.float32)
start = time.perf_counter()
y, saved = bn.batch_norm_training(x, w, b)
forward = time.perf_counter()
gradients = bn.batch_norm_backward(y, saved)
end = time.perf_counter()
assert abs(float(y.mean())) < 1e-6 and abs(float(y.var()) - 1) < 1e-4
assert abs(gradients.bias).max() < 1e-3
print(forward - start, end - start)
"""


def _run(program, **environment):
    """The numbers that a Python program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [float(number) for number in done.stdout.split()]


def imports(modules, rounds):
    """Seconds to import each module, in turns: {module: [seconds, ...]}."""
    program = {module: _IMPORT.format(module=module) for module in modules}
    for module in modules:
        _run(program[module])  # writes bytecode, brings files into memory
    times = {module: [] for module in modules}
    for _ in range(rounds):
        for module in modules:
            times[module] += _run(program[module])
    return times


def first_calls(cache_dir):
    """Seconds of a process's first forward call, and of first forward plus first backward."""
    return _run(_FIRST_CALLS, NUMBA_CACHE_DIR=str(cache_dir))
