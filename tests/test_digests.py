"""What counts as a change of the code, and what does not."""

from pathlib import Path

import pytest

from zqlib import digests
from zqlib.digests import code_digest, environment, imports, sources

CODE = 'def f(x: int) -> int:\n    """Double."""\n    return 2 * x\n'


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('# why\ndef f(x: int) -> int:\n    """Twice."""\n\n    return 2 * x  # so\n', True),
        ("def f(x: int) -> int:\n    return (2 * x)\n", True),
        (CODE.replace("2 * x", "3 * x"), False),
        (CODE.replace("2 * x", "'2 * x'"), False),
        (CODE.replace("f(", "g("), False),
    ],
)
def test_only_code_counts(other: str, same: bool) -> None:
    assert (code_digest(CODE) == code_digest(other)) is same


def test_a_result_depends_on_what_its_code_reaches() -> None:
    wer, layers = sources(["zqlib.experiments.wer"]), sources(["zqlib.experiments.layers"])
    assert {"zqlib", "zqlib.audio", "zqlib.integer.reference", "zqlib.models.jasper"} <= set(wer)
    assert "zqlib.layer_errors" in layers and "zqlib.layer_errors" not in wer
    for name in ("zqlib.cli", "zqlib.export", "zqlib.training.loop", "zqlib.workflow"):
        assert name not in wer
    assert sources(["numpy", "zqlib.nowhere"]) == {}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own: a imports b within a function, and c's kernels."""
    package = tmp_path / "zqlib"
    (package / "c" / "kernels").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from zqlib import c\ndef f():\n    from zqlib.b import g\n")
    (package / "b.py").write_text("import yaml\ng = 1\n")
    (package / "c" / "__init__.py").write_text("")
    (package / "c" / "kernels" / "add.cpp").write_text("int x;")
    (package / "d.py").write_text("")
    monkeypatch.setattr(digests, "_PACKAGE", package)
    for cached in (digests._path, digests._digest, digests._imported):
        cached.cache_clear()
    yield package
    for cached in (digests._path, digests._digest, digests._imported):
        cached.cache_clear()


def test_imports_of_every_kind_are_followed(package: Path) -> None:
    found = sources(["zqlib.a"])
    assert set(found) == {"zqlib", "zqlib.a", "zqlib.b", "zqlib.c"}
    assert imports(["zqlib.a"]) == {"yaml"}
    (package / "c" / "kernels" / "add.cpp").write_text("int y;")
    digests._digest.cache_clear()
    changed = sources(["zqlib.a"])
    assert {name for name in found if found[name] != changed[name]} == {"zqlib.c"}


def test_versions_are_those_of_the_distributions() -> None:
    assert set(environment(["yaml", "numpy", "no_such_thing"])) == {"PyYAML", "numpy"}
    assert "+" not in environment(["torch"])["torch"]
