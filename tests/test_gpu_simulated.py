"""The logic of the CUDA kernels, on Numba's simulator: in a process of its own, as it must be."""

import pytest
from support import run_pytest, run_python


def run_simulated(*arguments, device):
    """Run pytest in a process with the simulator."""
    run_pytest(*arguments, env={"NUMBA_ENABLE_CUDASIM": "1", "BNNUMBA_TEST_DEVICE": device})


@pytest.mark.slow
def test_every_case_on_the_simulator():
    run_simulated("device_cases.py", device="simulator")


def test_the_simulator_notices_an_access_outside_of_all_arrays():
    run_python(
        """
        import numpy as np
        from bnnumba.gpu import simulator
        x = np.zeros(8, np.float32)
        address = simulator.register(x)
        m = simulator.machine("float32", 4, 1, "float32")
        m.fetch(address, 4)
        for index in (8, -4):
            try:
                m.fetch(address, index)
            except ValueError as error:
                assert "in no array" in str(error)
            else:
                raise AssertionError(index)
        try:
            m.fetch(address, 1)
        except ValueError as error:
            assert "not aligned" in str(error)
        else:
            raise AssertionError
        """,
        env={"NUMBA_ENABLE_CUDASIM": "1"},
    )


def test_the_simulator_notices_a_barrier_that_some_threads_do_not_come_to():
    run_python(
        """
        from bnnumba.gpu import simulator

        def kernel(meeting, seen):
            simulator.sync()
            seen.append((simulator.block(), simulator.thread()))
            if simulator.thread() < meeting:
                simulator.sync()

        seen = []
        for meeting in 0, 4:
            simulator.simulate(kernel, 3, 4, 0, (meeting, seen))
        assert seen == 2 * [(block, thread) for block in range(3) for thread in range(4)]
        try:
            simulator.simulate(kernel, 1, 4, 0, (3, seen))
        except ValueError as error:
            assert "3 of 4 threads" in str(error)
        else:
            raise AssertionError
        """,
        env={"NUMBA_ENABLE_CUDASIM": "1"},
    )


def test_the_simulator_says_what_it_needs():
    run_python(
        """
        import sys
        import bnnumba as bn
        from bnnumba.gpu import simulator

        sys.modules["greenlet"] = None
        try:
            simulator.simulate(print, 1, 1, 0, ())
        except bn.BackendError as error:
            assert "pip install greenlet" in str(error)
        else:
            raise AssertionError
        """,
        env={"NUMBA_ENABLE_CUDASIM": "1"},
    )


def test_each_ticket_of_a_swept_kernel_is_one_job_and_waits_for_earlier_ones_alone():
    run_python(
        """
        from bnnumba.gpu.kernels import sweep_of
        for tiles in range(1, 12):
            for parts in range(1, 5):
                for group in range(1, tiles + 2):
                    groups = -(-tiles // group)
                    done, seen = {}, set()
                    for ticket in range(2 * groups * group * parts):
                        second, tile, part = sweep_of(ticket, tiles, parts, group)
                        assert (bool(second), tile, part) not in seen
                        seen.add((bool(second), tile, part))
                        if second:
                            assert done[tile] == parts
                        else:
                            done[tile] = done.get(tile, 0) + 1
                    jobs = {(t, p) for t in range(tiles) for p in range(parts)}
                    assert {(second, *job) for second in (False, True) for job in jobs} <= seen
        """,
        env={"NUMBA_ENABLE_CUDASIM": "1"},
    )


def test_fewer_channels_are_taken_at_a_time_where_the_cache_holds_their_rows():
    run_python(
        """
        from bnnumba.gpu.plan import Traits, plan_sweeps
        device = Traits((9, 0), 132, 227 << 10, 50 << 20)
        plans = {n: plan_sweeps(64, n, True, 4, 16, 4, 1, device) for n in
                 (1000, 100_000, 200_000, 400_000, 1_000_000)}
        assert [plan and (plan.lanes, plan.group) for plan in plans.values()] == [
            (8, 8), (8, 1), (4, 1), (2, 1), None]
        """,
        env={"NUMBA_ENABLE_CUDASIM": "1"},
    )
