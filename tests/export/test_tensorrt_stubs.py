"""Our calls of TensorRT against the API of the real bindings, which mypy reads as stubs."""

from pathlib import Path

import pytest
from tensorrt_stubs import ROOT, check_types, make_stub

SOURCE = ROOT / "zqlib" / "export" / "tensorrt.py"


@pytest.fixture(scope="module", params=["11.4.0.106", "10.16.1.11"])
def stubs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stub(request.param, tmp_path_factory.mktemp("bindings"))


def test_our_calls_fit_the_bindings(stubs: Path) -> None:
    assert check_types(SOURCE, stubs) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("create_optimization_profile()", "create_optimisation_profile()", "has no attribute"),
        ("trt.BuilderFlag.TF32", "trt.BuilderFlag.TF23", "has no attribute"),
        ("trt.Dims(least), ", "", "Missing positional argument"),
        ("parser.parse(model)", "parser.parse(1)", "incompatible type"),
    ],
)
def test_a_wrong_call_is_seen(
    stubs: Path, tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    text = SOURCE.read_text()
    assert right in text
    (tmp_path / "wrong.py").write_text(text.replace(right, wrong))
    assert message in check_types(tmp_path / "wrong.py", stubs)
