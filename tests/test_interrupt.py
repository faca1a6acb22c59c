"""Ctrl-C leaves statistics as they were or as they should become, and the process able to go on."""

import pathlib
import sys
import threading

import numpy as np
import pytest
from support import normal, run_python, same_bits

import bnnumba as bn
from bnnumba.compiling import compiler_lock, compiling, uninterrupted

PACKAGE = str(pathlib.Path(bn.__file__).parent)


def interrupted_at(step, call):
    """Run call, raising KeyboardInterrupt before its step-th instruction in the package."""
    left = step

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def every_interruption(make, call, state):
    """Yield the state after call was interrupted before its 1st, 2nd, ... instruction."""
    step = 1
    while True:
        thing = make()
        stopped = interrupted_at(step, lambda thing=thing: call(thing))
        yield state(thing)
        if not stopped:
            return
        step += 1


def assert_whole(make, call, state):
    old, done = make(), make()
    call(done)
    allowed = [state(old), state(done)]
    assert any(not same_bits(a, b) for a, b in zip(*allowed, strict=True))
    count = 0
    for found in every_interruption(make, call, state):
        count += 1
        assert any(
            all(same_bits(a, b) for a, b in zip(found, whole, strict=True)) for whole in allowed
        ), f"half a state after {count} instructions"
    assert count > 5, "the call ran inside the package"


X = normal((5, 3, 7), loc=2)


@pytest.mark.parametrize("statistics", [np.float32, np.float64])
def test_running_statistics_of_training(statistics):
    assert_whole(
        lambda: (np.zeros(3, statistics), np.ones(3, statistics)),
        lambda r: bn.batch_norm_training(X, running_mean=r[0], running_var=r[1]),
        lambda r: r,
    )


def test_running_statistics_that_are_views():
    assert_whole(
        lambda: (np.zeros(6)[::2], np.ones(6)[::-2]),
        lambda r: bn.batch_norm_training(X, running_mean=r[0], running_var=r[1]),
        lambda r: r,
    )


def test_update_running():
    m = bn.moments(X)
    assert_whole(lambda: (np.zeros(3), np.ones(3)), lambda r: bn.update_running(*r, m), lambda r: r)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_a_layer(momentum):
    assert_whole(
        lambda: bn.BatchNorm(3, momentum=momentum),
        lambda layer: layer(X),
        lambda layer: (layer.running_mean, layer.running_var),
    )


def test_running_moments_update():
    assert_whole(
        lambda: bn.RunningMoments(3),
        lambda running: running.update(X),
        lambda running: tuple(running.state_dict().values()),
    )


def test_running_moments_merge():
    other = bn.RunningMoments(3)
    other.update(X)
    assert_whole(
        lambda: bn.RunningMoments(3),
        lambda running: running.merge(other),
        lambda running: tuple(running.state_dict().values()),
    )


def test_an_update_in_a_signal_handler_during_another_is_kept(monkeypatch):
    running, merge, at_once = bn.RunningMoments(3), bn.Moments.merge, [X]

    def merge_and_be_interrupted(self, other):
        merged = merge(self, other)
        if at_once:
            running.update(at_once.pop())
        return merged

    monkeypatch.setattr(bn.Moments, "merge", merge_and_be_interrupted)
    running.update(X)
    assert running.count == 2 * 5 * 7


def test_the_state_of_a_layer():
    state = bn.BatchNorm(3).state_dict()
    for number, name in enumerate(state, 2):
        state[name] = state[name] * 0 + number
    assert_whole(
        lambda: bn.BatchNorm(3),
        lambda layer: layer.load_state_dict(state),
        lambda layer: tuple(np.asarray(value) for value in layer.state_dict().values()),
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_no_interrupt_keeps_threads_from_later_calls():
    run_python(
        """
        import signal, time
        from bnnumba.cpu import threads

        threads.run(int, True)  # the team is compiled
        armed, raised = False, 0

        def interrupt(*_):
            global armed, raised
            if armed:
                armed, raised = False, raised + 1
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 5e-6)
                for _ in range(200):
                    threads.run(int, True)
                armed = False
            except KeyboardInterrupt:
                pass
            assert not threads._region.locked(), f"locked after {raised} interrupts"
        assert raised > 100, raised
        """
    )


def test_what_compiles_is_done_whenever_it_is_interrupted():
    done = []

    def work(step):
        with compiling():
            done.append(step)

    def other_thread():
        with compiler_lock:
            done.append("other")

    step, stopped = 0, True
    while stopped:
        step += 1
        stopped = interrupted_at(step, lambda step=step: uninterrupted(work, step))
        done.clear()
        uninterrupted(work, 0)
        thread = threading.Thread(target=other_thread, daemon=True)
        thread.start()
        thread.join(60)
        assert done[-2:] == [0, "other"], f"the lock is kept after {step} instructions"
    assert step > 20


# Each call is the first one of a process, which is forked before it.
FIRST_CALL = """
import faulthandler
import os
import signal
import sys
import threading
import time

import numpy as np

import bnnumba as bn
from bnnumba.cpu.jit import Strided

def scale(x, y):
    for i in range(len(x)):
        y[i] = 2.0 * x[i]

scale, x, y = Strided(scale, ("y",)), np.arange(12.0).reshape(6, 2), np.zeros(6)

def loads():
    assert bn.moments(x).mean.tolist() == [5.0, 6.0]

def compiles():  # what is not in a file is not cached
    scale(x[:, 0], y)
    assert y.tolist() == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]

def first_call(call, delay):
    faulthandler.dump_traceback_later(100, exit=True)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    begun, interrupted = time.monotonic(), False
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted = True
    took = time.monotonic() - begun
    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    call()
    return interrupted, took

def in_a_child(call, delay):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            interrupted, took = first_call(call, delay)
            os.write(writer, f"{interrupted:d} {took}".encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writer)
    said = os.read(reader, 99).split()
    assert os.waitpid(child, 0)[1] == 0, delay
    os.close(reader)
    return int(said[0]), float(said[1])

call = {"loads": loads, "compiles": compiles}[sys.argv[1]]
in_a_child(call, 0)
_, whole = in_a_child(call, 0)
count = 0
for again in range(5):  # where the machine is busy, most come late or early
    count += sum(in_a_child(call, whole * i / 12)[0] for i in range(1, 12))
    if count >= 6:
        break
assert count >= 6, count
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("kind", ["loads", "compiles"])
def test_calls_after_an_interrupted_first_call(kind):
    run_python(FIRST_CALL, kind)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_process_that_is_interrupted_while_it_compiles_ends(tmp_path):
    code = """
    import signal
    import time

    import numpy as np

    import bnnumba as bn

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        bn.batch_norm_training(np.ones((4, 3)))
        time.sleep(60)  # it was quicker
    finally:
        print("interrupted")
    """
    process = run_python(code, env={"NUMBA_CACHE_DIR": tmp_path}, check=False)
    assert process.returncode != 0
    assert process.stdout == "interrupted\n"
    assert process.stderr.endswith("\nKeyboardInterrupt\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("lock", ["compiling.compiler_lock", "moments._lock"])
def test_an_interrupt_while_a_fork_waits_is_raised_after_it(lock):
    code = """
    import importlib
    import os
    import signal
    import sys
    import threading
    import time

    import numpy as np

    import bnnumba as bn

    module, name = sys.argv[1].split(".")
    lock = getattr(importlib.import_module(f"bnnumba.{module}"), name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent, taken = os.getpid(), threading.Event()

    def hold():
        with lock:
            taken.set()
            time.sleep(0.1)
            os.kill(parent, signal.SIGINT)
            time.sleep(0.1)

    for _ in range(3):
        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        taken.clear()
        reader, writer = os.pipe()
        interrupted = False
        try:
            os.fork()
            list(range(9))
        except KeyboardInterrupt:
            interrupted = True
        if os.getpid() != parent:
            signal.alarm(60)
            running = bn.RunningMoments(2)
            running.update(np.ones((3, 2)))
            os.write(writer, f"{interrupted:d} {running.count}".encode())
            os._exit(0)
        assert interrupted and not lock._is_owned()
        os.close(writer)
        assert os.read(reader, 9) == b"0 3"
        assert os.wait()[1] == 0
        thread.join()
    child = os.fork()  # once more, and nothing is raised
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    process = run_python(code, lock)
    assert not process.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_real_interrupt_is_raised_and_the_process_goes_on():
    run_python(
        """
        import faulthandler, os, signal, threading, time
        import numpy as np
        import bnnumba as bn

        x = np.random.default_rng(0).standard_normal((32, 64, 28, 28)).astype(np.float32)
        mean, var = np.zeros(64), np.ones(64)
        bn.batch_norm_training(x, running_mean=mean, running_var=var)

        faulthandler.dump_traceback_later(200, exit=True)  # before the time is up
        # A shell starts what it runs in the background with interrupts ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def press(delay):
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)

        for attempt in range(50):
            mean, var = np.zeros(64), np.ones(64)
            calls = 0
            presser = threading.Thread(target=press, args=(0.001 * attempt,))
            try:
                presser.start()  # which may be what the first signal interrupts
                until = time.monotonic() + 60
                while time.monotonic() < until:
                    bn.batch_norm_training(x, running_mean=mean, running_var=var)
                    calls += 1
                raise AssertionError(f"nothing was interrupted: {attempt}, {calls} calls")
            except KeyboardInterrupt:
                pass
            presser.join()
            whole = []
            for n in (calls, calls + 1):
                m, v = np.zeros(64), np.ones(64)
                for _ in range(n):
                    bn.batch_norm_training(x, running_mean=m, running_var=v)
                whole.append((m.tobytes(), v.tobytes()))
            assert (mean.tobytes(), var.tobytes()) in whole, attempt
        """
    )
