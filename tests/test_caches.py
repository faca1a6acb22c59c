"""What a CPU's caches make the steps choose."""

import numpy as np
import pytest

from bnnumba.cpu import caches, choices


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
        ("znver5", caches.Caches(512 << 10, caches.SPILL, 32 << 20, 16 << 20, ahead=True)),
        ("znver4", caches.Caches(2 << 20, caches.SPILL, 32 << 20, 16 << 20, ahead=True)),
        ("znver3", caches.Caches(2 << 20, caches.SPILL, 16 << 20, 16 << 20, ahead=True)),
        ("sapphirerapids", caches.Caches(512 << 10, 512 << 10, 24 << 20, 16 << 20, ahead=False)),
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
        (choices.WRITES, 1, 16, True),
        (choices.WRITES, 1, 17, False),
        (choices.WRITES, 2, 16, False),
        (choices.FUSED, 1, 8, True),
        (choices.FUSED, 1, 9, False),
        (choices.FUSED, 2, 5, True),
        (choices.FUSED, 2, 6, False),
    ],
)
def test_an_output_stays_in_the_cache_if_all_fits(kind, inputs, megabytes, kept):
    out = np.empty(megabytes << 18, np.float32)
    here = caches.Caches(512 << 10, caches.SPILL, shared=32 << 20, swept=16 << 20, ahead=True)
    assert choices.streams(out, kind, inputs, here) is not kept


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((32, 64, 56, 56), 1),  # a row is long by itself
        ((128, 256, 14, 14), 11),  # 784 bytes each
        ((4096, 256, 7, 7), 0),  # 196 bytes each, but 800 KB a channel
        ((4096, 100, 56, 1), 0),  # no more than 25 of them, for four blocks
    ],
)
def test_a_block_has_long_runs_if_it_may_spill(shape, block):
    n, c, h, w = shape
    x = choices.Extents((n, c, h * w), 3, n * c * h * w, 4)
    here = caches.Caches(512 << 10, 4 << 20, shared=2 << 20, swept=1 << 20, ahead=True)
    assert choices.fused_block(x, c, 1, 1, here) == block


@pytest.mark.parametrize(
    ("rows", "channels", "s", "inputs", "fused"),
    [
        (64, 30_000, 1, 1, True),
        (64, 15_000, 2, 1, True),
        (4096, 20_000, 1, 1, False),  # runs of 8 KiB would be 33 MB
        (64, 9000, 1, 1, True),  # in the cache, runs of 2 KiB are enough
        (2048, 1000, 1, 1, False),
        (64, 50_000, 1, 2, True),
        (64, 40_000, 1, 1, False),  # x and y fit into the cache, but not for a fused step
        (64, 80_000, 1, 1, True),
    ],
)
def test_rows_of_many_channels_may_be_fused(rows, channels, s, inputs, fused):
    x = choices.Extents((rows, channels * s), 2, rows * channels * s, 4)
    here = caches.Caches(512 << 10, 4 << 20, shared=32 << 20, swept=16 << 20, ahead=True)
    block = choices.fused_block(x, channels, inputs, 2, here)
    assert (block > 0) is fused
    assert block * s <= choices.BLOCK_RC
