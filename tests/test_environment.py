"""The three descriptions of the environment agree, and importing the package stays light."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "nemo",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "triton",
    "pandas",
    "librosa",
)


def read_project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def read_requirements(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    named = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(named) == len(requirements), "a package is listed twice"
    return named


@pytest.fixture(scope="module")
def project() -> dict[str, Requirement]:
    """Core dependencies and those of every extra, by canonical name."""
    described = read_project()
    extras = [line for extra in described["optional-dependencies"].values() for line in extra]
    others = [line for line in extras if not line.startswith("zqlib[")]  # an extra in an extra
    return read_requirements([*described["dependencies"], *others])


@pytest.fixture(scope="module")
def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return read_requirements([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def conda() -> list:
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


@pytest.fixture(scope="module")
def conda_pip(conda: list) -> dict[str, Requirement]:
    (pip_section,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    return read_requirements([line for line in pip_section if not line.startswith("-")])


def pinned_version(requirement: Requirement) -> str | None:
    match = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
    return match.group(1) if match else None


def test_constraints_are_exact_pins(constraints: dict[str, Requirement]) -> None:
    loose = [name for name, line in constraints.items() if pinned_version(line) is None]
    assert loose == []
    local = [name for name, line in constraints.items() if "+" in str(line.specifier)]
    assert local == [], "a local build such as +cpu is in no public registry"


def test_constraints_cover_the_project(
    project: dict[str, Requirement], constraints: dict[str, Requirement]
) -> None:
    gpu = read_requirements(read_project()["optional-dependencies"]["gpu"])
    assert set(project) - set(gpu) <= set(constraints)
    for name in set(project) & set(constraints):
        version = pinned_version(constraints[name])
        assert project[name].specifier.contains(version), name


def test_every_pin_is_of_something_that_is_installed(constraints: dict[str, Requirement]) -> None:
    """A pin that outlives what asked for it is never tried."""
    installed = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    assert sorted(set(constraints) - installed) == []


def test_constraints_suit_every_python_that_is_promised(
    constraints: dict[str, Requirement],
) -> None:
    """Some packages ask for a later patch release than a distribution's own Python has."""
    oldest = "3.11.0"
    assert SpecifierSet(read_project()["requires-python"]).contains(oldest)
    asked = {
        canonicalize_name(one.metadata["Name"]): one.metadata.get("Requires-Python", "")
        for one in distributions()
    }
    installed = set(constraints) & set(asked)
    assert "torch" in installed
    assert [n for n in sorted(installed) if not SpecifierSet(asked[n]).contains(oldest)] == []


def test_what_the_package_imports_is_declared(project: dict[str, Requirement]) -> None:
    imported = set()
    for path in (ROOT / "zqlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    by_module = packages_distributions()
    for module in imported - set(sys.stdlib_module_names) - {"zqlib"}:
        providers = {canonicalize_name(name) for name in by_module.get(module, [module])}
        assert providers & set(project), f"{module} is imported and not declared"


def test_conda_names_what_the_project_names(
    project: dict[str, Requirement], conda_pip: dict[str, Requirement]
) -> None:
    assert set(conda_pip) == set(project)
    assert {n: r.extras for n, r in conda_pip.items()} == {n: r.extras for n, r in project.items()}


def test_conda_versions_are_those_of_the_constraints(
    project: dict[str, Requirement],
    constraints: dict[str, Requirement],
    conda_pip: dict[str, Requirement],
) -> None:
    for name, requirement in conda_pip.items():
        expected = constraints[name] if name in constraints else project[name]
        assert requirement.specifier == expected.specifier, name


def test_conda_python_is_the_projects(conda: list) -> None:
    (python,) = [e for e in conda if isinstance(e, str) and re.match(r"python\b", e)]
    version = python.removeprefix("python=")
    allowed = Requirement(f"python{read_project()['requires-python']}").specifier
    assert allowed.contains(f"{version}.0")


def test_make_installs_the_torch_of_the_constraints(constraints: dict[str, Requirement]) -> None:
    installed = re.findall(r"install .*\btorch==(\S+)", (ROOT / "Makefile").read_text())
    assert installed == [pinned_version(constraints["torch"])]


@pytest.mark.parametrize("module", ["zqlib", "zqlib.cli"])
def test_import_is_light(module: str) -> None:
    program = f"import sys, {module}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.split() == []
