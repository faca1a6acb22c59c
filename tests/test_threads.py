"""Callers that bring their own threads and processes: no abort, and right results."""

import signal
import sys

import numba
import pytest
from support import THREADING_LAYERS, run_python, run_with_layer

HAMMER = """
import sys
import threading
import time

import numba
import numpy as np
import workload

seconds = float(sys.argv[1])
cases = [*workload.SMALL, ((16, 64, 28, 28), 1), ((9, 1, 100_003), 1), ((8192, 100), 1)]
inputs = {(case, dtype): workload.inputs(*case, dtype)
          for case in cases for dtype in (np.dtype(np.float32), np.dtype(np.float16))}
expected = {key: [a.tobytes() for a in workload.compute(*arguments, key[0][1])]
            for key, arguments in inputs.items()}
deadline = time.monotonic() + seconds
calls, wrong = [0] * 8, []

def work(me):
    keys = list(inputs)
    rng = np.random.default_rng(me)
    while time.monotonic() < deadline and not wrong:
        key = keys[rng.integers(len(keys))]
        try:
            got = [a.tobytes() for a in workload.compute(*inputs[key], key[0][1])]
        except BaseException as error:
            wrong.append(error)
            raise
        if got != expected[key]:
            wrong.append(key)
        calls[me] += 1

threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert not wrong, wrong
assert min(calls) > 0, calls
print(numba.threading_layer(), sum(calls))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
def test_eight_threads_at_once_for_twenty_seconds(layer):
    assert run_with_layer(layer, HAMMER, 20).split()[0] == layer


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
def test_eight_threads_whose_first_calls_compile(layer):
    # Each begins with another dtype, so that some compile, or load, while others already compute.
    run_with_layer(
        layer,
        """
        import threading
        import workload

        cases = [(case, dtype) for case in [workload.SMALL[0], workload.LARGE[1]]
                 for dtype in workload.FLOATS + workload.HALVES]
        inputs = [workload.inputs(*case, dtype) for case, dtype in cases]
        results, barrier = [set() for _ in cases], threading.Barrier(8)

        def work(me):
            barrier.wait()
            for i in range(me, me + len(cases)):
                arrays = workload.compute(*inputs[i % len(cases)], 1)
                results[i % len(cases)].add(b"".join(a.tobytes() for a in arrays))
            finished.append(me)

        finished = []
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(finished) == 8
        assert all(len(bits) == 1 for bits in results)
        """,
    )


FORK = """
import os
import sys
import threading
import workload

cases, dtypes = [workload.LARGE[1], workload.LARGE[3], *workload.SMALL], workload.FLOATS[:1]
threaded = sys.argv[1] == "while_another_thread_computes"
expected = workload.digest(cases, dtypes) if sys.argv[1] != "before_the_first_call" else None
stop = threading.Event()

def busy():
    while not stop.is_set():
        workload.digest(cases, dtypes)

other = threading.Thread(target=busy)
if threaded:
    other.start()

for _ in range(5):
    child = os.fork()
    if child == 0:
        found = workload.digest(cases, dtypes)
        workload.check(cases[:1], dtypes)
        os._exit(0 if expected in (None, found) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
if threaded:
    other.join()
assert expected in (None, workload.digest(cases, dtypes)), "the parent goes on working"
"""


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
@pytest.mark.parametrize(
    "when", ["after_a_call", "before_the_first_call", "while_another_thread_computes"]
)
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_after_fork(layer, when):
    run_with_layer(layer, FORK, when)


POOL = """
import multiprocessing
import sys
import workload

def main():
    cases, dtypes = [workload.LARGE[1], *workload.SMALL], workload.FLOATS[:1]
    expected = workload.digest(cases, dtypes)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        found = pool.starmap(workload.digest, [(cases, dtypes)] * 6, chunksize=1)
    assert set(found) == {expected}

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_multiprocessing(layer, method):
    run_with_layer(layer, POOL, method)


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
def test_thread_pool_of_the_standard_library(layer):
    run_with_layer(
        layer,
        """
        from concurrent.futures import ThreadPoolExecutor
        import workload

        cases, dtypes = [workload.LARGE[1], *workload.SMALL], workload.FLOATS[:1]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: workload.digest(cases, dtypes), range(24)))
        assert set(found) == {workload.digest(cases, dtypes)}
        """,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_joblib(backend):
    pytest.importorskip("joblib")
    run_with_layer(
        "workqueue",
        """
        import sys
        import joblib
        import workload

        cases, dtypes = [workload.LARGE[1], *workload.SMALL], workload.FLOATS[:1]
        jobs = (joblib.delayed(workload.digest)(cases, dtypes) for _ in range(6))
        found = joblib.Parallel(n_jobs=2, backend=sys.argv[1])(jobs)
        assert set(found) == {workload.digest(cases, dtypes)}
        """,
        backend,
    )


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
def test_callable_from_inside_a_parallel_region_of_another_package(layer):
    # A user's own prange kernel that calls back into Python, and so into bnnumba.
    run_with_layer(
        layer,
        """
        import numba
        import numpy as np
        import bnnumba as bn

        x = np.random.default_rng(0).standard_normal((16, 64, 28, 28)).astype(np.float32)
        expected = bn.batch_norm_training(x)[0].tobytes()
        wrong = []

        def call():
            if bn.batch_norm_training(x)[0].tobytes() != expected:
                wrong.append(1)

        @numba.njit(parallel=True)
        def outer(n):
            for i in numba.prange(n):
                with numba.objmode():
                    call()

        outer(8)
        assert not wrong
        """,
    )


def test_the_users_number_of_threads_is_left_alone():
    import workload

    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        workload.check(workload.LARGE[1:2], workload.FLOATS[:1])
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)
    workload.check(workload.LARGE[1:2], workload.FLOATS[:1])
    assert numba.get_num_threads() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(
    ("cache", "rows", "delay"),
    [
        # While it compiles, which takes seconds, or loads, and while threads start.
        ("empty", 4, 0.0), ("empty", 4, 0.1), ("empty", 400_000, 0.01), ("empty", 400_000, 1.0),
        *(("warm", rows, delay) for rows in (4, 400_000) for delay in (0.0, 0.001, 0.01, 0.1)),
    ],
)  # fmt: skip
def test_a_fork_while_another_thread_makes_its_first_call(tmp_path, cache, rows, delay):
    code = """
    import os
    import signal
    import sys
    import threading
    import time

    import numpy as np

    import bnnumba as bn

    rows, delay = int(sys.argv[1]), float(sys.argv[2])
    x = np.ones((rows, 3), np.float32)
    thread = threading.Thread(target=bn.moments, args=(x,))
    thread.start()
    time.sleep(delay)
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(bn.moments(x).count != rows)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    """
    env = {"NUMBA_CACHE_DIR": str(tmp_path)} if cache == "empty" else {}
    run_python(code, rows, delay, env=env)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.parametrize("delay", [0.005, 0.05, 0.5])
def test_a_signal_handler_may_call_during_a_first_call(tmp_path, delay):
    code = """
    import faulthandler
    import signal
    import sys

    import numpy as np

    import bnnumba as bn

    faulthandler.dump_traceback_later(120, exit=True)
    x, said = np.ones((4, 3), np.float32), []

    def handle(*_):
        said.append(bn.moments(x).count)

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
    assert bn.moments(x).count == 4
    while not said:
        pass
    assert said == [4] and bn.moments(x).count == 4
    """
    run_python(code, delay, env={"NUMBA_CACHE_DIR": str(tmp_path)})
