"""What a machine can do at best, where torch has no fast product of bytes to measure."""

import pytest
import torch

from zqlib.benchmark import machine, peak


@pytest.mark.parametrize(("processor", "factor"), [("x86_64", 2), ("aarch64", 1)])
def test_without_fast_byte_products_int8_follows_from_float32(
    monkeypatch: pytest.MonkeyPatch, processor: str, factor: int
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(peak, "_SIZE", 64)
    monkeypatch.setattr(peak, "_COPIED_BYTES", 4096)
    monkeypatch.setattr(peak, "int_mm_is_fast", lambda: False)
    monkeypatch.setattr(machine, "bind", lambda cpus: None)
    monkeypatch.setattr(peak.platform, "machine", lambda: processor)
    try:
        found = peak._measure([0], seconds=0.01)
    finally:
        torch.set_num_threads(threads)
    assert found.int8 == pytest.approx(factor * found.float32)
    assert found.copy_gb_per_s > 0
