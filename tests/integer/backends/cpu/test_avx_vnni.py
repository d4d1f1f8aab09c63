"""The kernels for AVX-VNNI, where it takes AVX-512 to run them: few processors have AVX-VNNI."""

from pathlib import Path

import pytest
import same
import test_convolutions as convolutions
import test_executor as executors
import test_operators as operators
from same import AVAILABLE

from zqlib.integer.backends.cpu import executor
from zqlib.integer.backends.cpu import library as module
from zqlib.quantization.scheme import preset


@pytest.mark.skipif("avx512_vnni" not in AVAILABLE, reason="this processor lacks AVX-512 VNNI")
def test_same_with_the_dot_product_of_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Path(__file__).with_name("avx_vnni_as_avx2.h")
    kernels = Path(module.__file__).with_name("kernels")
    flags = ("-mavx2", "-mavx512vl", "-mavx512vnni", f"-I{kernels}", "-include", str(header))
    monkeypatch.setitem(module._X86_64, "avx2.cpp", flags)
    library = module.Library(module.compiled())
    monkeypatch.setattr(executor, "library", lambda: library)
    monkeypatch.setattr(same, "AVAILABLE", ["avx2"])
    convolutions.test_conv1d()
    convolutions.test_conv2d()
    operators.test_attention()
    executors.test_tiny_networks()
    executors.test_tiny_conformer(preset("w8a8"))
