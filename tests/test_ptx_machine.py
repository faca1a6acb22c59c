"""The interpreter of PTX does what the code says, and notices what a GPU would not show."""

import numpy as np
import ptx_machine
import pytest

THREADS = 64
ENTRY = ".visible .entry kernel(.param .u64 kernel_param_0)\n{{\n{}\n}}"
START = """
    ld.param.u64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    cvt.u64.u32 %rd2, %r2;
    add.s64 %rd3, %rd1, %rd2;
    setp.lt.u32 %p1, %r1, 40;
"""


def run(body, count=THREADS):
    """Run a kernel of one block on an array of 0, 1, 2, ... and return the array."""
    x = np.arange(count, dtype=np.float32)
    address = x.ctypes.data
    program = ptx_machine.Program(ENTRY.format(START + body), "q")
    program.run({address: x.nbytes}, 1, THREADS, 4 * THREADS, (address,))
    return x


def test_threads_that_part_meet_again():
    x = run("""
        ld.global.f32 %f1, [%rd3];
        @!%p1 bra $else;
        add.f32 %f1, %f1, 0f3F800000;
        bra.uni $end;
    $else:
        mul.f32 %f1, %f1, 0f40000000;
    $end:
        st.global.f32 [%rd3], %f1;
        ret;
    """)
    i = np.arange(THREADS)
    np.testing.assert_array_equal(x, np.where(i < 40, i + 1, 2 * i))


def test_a_sum_over_a_warp_and_over_warps():
    steps = "".join(
        f"""
        shfl.sync.down.b32 %r5|%p2, %r4, {distance}, 31, -1;
        mov.b32 %f2, %r5;
        @%p2 add.f32 %f1, %f1, %f2;
        mov.b32 %r4, %f1;
        """
        for distance in (16, 8, 4, 2, 1)
    )
    x = run(f"""
        ld.global.f32 %f1, [%rd3];
        mov.b32 %r4, %f1;
        {steps}
        st.shared.f32 [%r2], %f1;
        bar.sync 0;
        ld.shared.f32 %f3, [bnnumba_shared];
        ld.shared.f32 %f4, [bnnumba_shared+128];
        add.f32 %f5, %f3, %f4;
        st.global.f32 [%rd3], %f5;
        ret;
    """)
    np.testing.assert_array_equal(x, np.full(THREADS, THREADS * (THREADS - 1) / 2))


FAULTS = {
    "out of bounds": "ld.global.f32 %f1, [%rd3+4]; ret;",
    "not aligned": "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+4]; ret;",
    "access at": "st.shared.f32 [%r2+8], %f1; ret;",
    "before anybody wrote": "ld.shared.f32 %f1, [%r2]; ret;",
    "a race with a thread that wrote": (
        "st.shared.b32 [%r2], %r1; ld.shared.b32 %r3, [bnnumba_shared]; ret;"
    ),
    "a race with a thread that read": (
        "st.shared.b32 [%r2], %r1; bar.sync 0; ld.shared.b32 %r3, [bnnumba_shared]; "
        "st.shared.b32 [%r2], %r1; ret;"
    ),
    "two threads write at once": "st.shared.b32 [bnnumba_shared], %r1; ret;",
    "a barrier that a part": "@%p1 bra $end; bar.sync 0; $end: ret;",
    "a shuffle that a part": (
        "@%p1 bra $end; shfl.sync.down.b32 %r3|%p2, %r1, 1, 31, -1; $end: ret;"
    ),
    "does not end": "$again: bra $again;",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(monkeypatch, fault):
    monkeypatch.setattr(ptx_machine, "MOST_STEPS", 1000)
    with pytest.raises(ptx_machine.Fault, match=fault):
        run(FAULTS[fault])
