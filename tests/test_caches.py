"""What a CPU's caches make the steps choose."""

import numpy as np
import pytest

from bnnumba import cpu
from bnnumba.cpu import caches


@pytest.mark.parametrize(("said", "size"), [("512K\n", 512 * 1024), ("", 7), (None, 7)])
def test_a_system_that_does_not_tell_its_cache_gets_the_usual_one(
    said, size, tmp_path, monkeypatch
):
    if said is not None:
        (tmp_path / "2").write_text(said)
    monkeypatch.setattr(caches, "SIZE", str(tmp_path / "{}"))
    assert caches._size(2, usual=7) == size


@pytest.mark.parametrize(
    ("cpu_name", "expected"),
    [
        ("znver5", caches.Caches(512 << 10, caches.SPILL, 32 << 20, ahead=True)),
        ("znver4", caches.Caches(caches.ZEN_4_BLOCK, caches.SPILL, 32 << 20, ahead=True)),
        ("sapphirerapids", caches.Caches(512 << 10, 512 << 10, caches.USUAL_SHARE, ahead=False)),
    ],
)
def test_what_a_cpu_bears(cpu_name, expected, tmp_path, monkeypatch):
    (tmp_path / "2").write_text("1024K\n")
    (tmp_path / "3").write_text("32768K\n")
    monkeypatch.setattr(caches, "SIZE", str(tmp_path / "{}"))
    monkeypatch.setattr(caches.llvm, "get_host_cpu_name", lambda: cpu_name)
    assert caches.found.__wrapped__() == expected


@pytest.mark.parametrize(
    ("kind", "inputs", "megabytes", "kept"),
    [
        (cpu.WRITES, 1, 16, True),
        (cpu.WRITES, 1, 17, False),
        (cpu.WRITES, 2, 16, False),
        (cpu.FUSED, 1, 10, True),
        (cpu.FUSED, 1, 12, False),
        (cpu.FUSED, 2, 10, False),
    ],
)
def test_an_output_stays_in_the_cache_if_all_fits(kind, inputs, megabytes, kept):
    out = np.empty(megabytes << 18, np.float32)
    assert cpu._streaming(out, kind, inputs, 32 << 20) is not kept


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((32, 64, 56, 56), 1),  # a row is long by itself
        ((128, 256, 14, 14), 11),  # 784 bytes each
        ((4096, 256, 7, 7), 5),  # 196 bytes each, but 800 KB a channel
    ],
)
def test_a_block_has_long_runs_if_it_may_spill(shape, block):
    n, c, h, w = shape
    x = cpu._Extents((n, c, h * w), 3, n * c * h * w, 4)
    assert cpu._fused_block(x, 1, 1, 512 << 10, 4 << 20) == block
