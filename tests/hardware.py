"""What the processor that runs the tests can do."""

import platform
from pathlib import Path

import pytest

__all__ = ["needs_exact_products"]


def _saturates() -> bool:
    """Whether sums of two products of uint8 and int8 are cut to 16 bits by other engines.

    So does x86's `vpmaddubsw`, which ONNX Runtime and OpenVINO take where there is no VNNI. Both
    say so in their documentation; our own kernels widen first.
    """
    if platform.machine() != "x86_64":
        return False
    return "vnni" not in Path("/proc/cpuinfo").read_text()


needs_exact_products = pytest.mark.skipif(
    _saturates(), reason="ONNX Runtime's and OpenVINO's products saturate on a CPU without VNNI"
)
