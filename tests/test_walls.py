"""Who may import what: the walls between the parts of the package, read from its syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zqlib"
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# A library and the one file or folder that may import it.
ONLY_IN = {
    "nemo": "models/nemo.py",
    "tensorrt": "export/tensorrt.py",
    "tensorrt_bindings": "export/tensorrt.py",
    "triton": "integer/backends/triton",
}
# What executes integer programs knows no model family, no quantizer and no data.
UNKNOWN_TO_INTEGER = ("zqlib.models", "zqlib.quantization", "zqlib.corpora", "zqlib.export", "nemo")


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute names of the modules that `source`, a module of `package`, imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base
            # `from zqlib import models` imports a module too
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"__import__", "import_module", "importlib.import_module"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(imported_modules(path.read_text(), package))


def is_within(module: str, wall: str) -> bool:
    return module == wall or module.startswith(f"{wall}.")


def relative_name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nemo.core as core", "nemo.core"),
        ("from zqlib import models", "zqlib.models"),
        ("from ..models import jasper", "zqlib.models"),
        ("from . import reference", "zqlib.integer.reference"),
        ("def f():\n    import triton", "triton"),
        ("importlib.import_module('tensorrt')", "tensorrt"),
    ],
)
def test_imports_are_seen(source: str, expected: str) -> None:
    assert expected in set(imported_modules(source, "zqlib.integer"))


def test_there_is_something_to_hold() -> None:
    assert MODULES
    assert any(relative_name(path).startswith("integer/") for path in MODULES)
    assert NOTEBOOKS


@pytest.mark.parametrize("path", MODULES, ids=relative_name)
def test_a_library_has_one_door(path: Path) -> None:
    for module in imports_of(path):
        for library, door in ONLY_IN.items():
            is_door = relative_name(path) == door or relative_name(path).startswith(f"{door}/")
            assert not is_within(module, library) or is_door, module


@pytest.mark.parametrize(
    "path", [p for p in MODULES if relative_name(p).startswith("integer/")], ids=relative_name
)
def test_integer_executes_programs_and_knows_no_models(path: Path) -> None:
    crossed = [m for m in imports_of(path) if any(is_within(m, w) for w in UNKNOWN_TO_INTEGER)]
    assert crossed == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_defines_no_algorithm(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    defined = [ast.unparse(n) for n in ast.walk(ast.parse(source)) if isinstance(n, definitions)]
    assert defined == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_unexecuted_with_its_parameters_tagged(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert not any(c.get("outputs") for c in cells if c.cell_type == "code")
