"""What notebooks can be told, and what not."""

import json
from pathlib import Path
from typing import Any

import papermill
import pytest

from zqlib.errors import InputError
from zqlib.parameters import Parameters, parse_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a profile of two models and three splits, two of which share a name."""
    profile = {
        "name": "p",
        "description": "For this test.",
        "models": [{"path": "a.nemo"}, {"path": "b.nemo"}],
        "corpora": [
            {"corpus": "one", "split": "test"},
            {"corpus": "two", "split": "test"},
            {"corpus": "two", "split": "dev"},
        ],
        "synthesis": {"seed": 3},
    }
    (tmp_path / "workflow" / "profiles").mkdir(parents=True)
    (tmp_path / "workflow" / "profiles" / "p.json").write_text(json.dumps(profile))
    return tmp_path


def cut(root: Path, **values: Any) -> tuple[list[str], list[tuple[str, str]], int]:
    profile = Parameters(profile="p", root=root, **values).load_profile()
    return (
        [model.name for model in profile.models],
        [(split.corpus, split.split) for split in profile.corpora],
        profile.synthesis.seed,
    )


def test_everything_unless_told_otherwise(root: Path) -> None:
    assert cut(root) == (["a", "b"], [("one", "test"), ("two", "test"), ("two", "dev")], 3)


def test_a_profile_is_cut_down(root: Path) -> None:
    models, splits, seed = cut(root, models=("b",), splits=("test",), seed=8)
    assert models == ["b"]
    assert splits == [("one", "test"), ("two", "test")]
    assert seed == 8
    assert cut(root, seed=0)[2] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("c",)}, "no model 'c'; use a, b"),
        ({"models": ("a", "")}, "no model ''"),
        ({"splits": ("train",)}, "no split 'train'"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**20}, "seed"),
    ],
)
def test_unknown_names_are_refused(root: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut(root, **values)


def test_a_namespace_of_a_notebook_is_read() -> None:
    import math

    namespace = {
        "profile": "local", "models": ["a"], "splits": [], "seed": 4, "math": math, "Path": Path,
        "_": 5, "__name__": "__main__", "_i1": "source", "In": ["source"], "Out": {}, "exit": exit,
    }  # fmt: skip
    assert Parameters.from_notebook(namespace) == Parameters("local", ("a",), (), 4)
    assert Parameters.from_notebook({}) == Parameters()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 4}, "parameter 'sed' is unknown; use models, profile, seed, splits"),
        ({"root": "elsewhere"}, "'root' is unknown"),
        ({"steps": 0.5}, "'steps' is unknown"),
        ({"steps": None}, "'steps' is unknown"),
        ({"steps": {"a": 1}}, "'steps' is unknown"),
        ({"steps": True}, "'steps' is unknown"),
        ({"seed": "4"}, "seed an integer"),
        ({"seed": 4.0}, "seed an integer"),
        ({"seed": True}, "seed an integer"),
        ({"profile": 4}, "profile is a name"),
        ({"profile": None}, "profile is a name"),
        ({"models": "a"}, "models is a list"),
        ({"splits": 4}, "splits is a list"),
        ({"splits": [4]}, "splits is a list"),
        ({"models": None}, "models is a list"),
    ],
    ids=str,
)
def test_what_is_no_parameter_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Parameters.from_notebook(values)


def test_assignments() -> None:
    assert parse_parameters([]) == {}
    assert parse_parameters(
        ["seed=4", "models=a,b", "splits=12", "profile=local", "x=-3", "y=a=b", "z="]
    ) == {
        "seed": 4, "models": ["a", "b"], "splits": ["12"], "profile": "local", "x": -3, "y": "a=b",
        "z": "",
    }  # fmt: skip


@pytest.mark.parametrize("value", ["--5", "²", "5-", "٣", "9" * 9999, "0x5", "1e3"])
def test_what_is_no_integer_stays_text(value: str) -> None:
    assert parse_parameters([f"seed={value}"]) == {"seed": value}
    with pytest.raises(InputError, match="seed an integer"):
        Parameters.from_notebook(parse_parameters([f"seed={value}"]))


@pytest.mark.parametrize("assignment", ["seed", "=4", "", "="])
def test_what_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(InputError, match="write name=value"):
        parse_parameters([assignment])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_these_parameters_with_these_defaults(notebook: Path) -> None:
    found = papermill.inspect_notebook(str(notebook))
    assert set(found) <= {"profile", "models", "splits", "seed"}
    values = {name: eval(item["default"]) for name, item in found.items()}
    assert Parameters.from_notebook(values) == Parameters()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_refuses_what_papermill_lets_pass(notebook: Path, tmp_path: Path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match="parameter 'sed' is unknown"):
        papermill.execute_notebook(
            str(notebook), str(tmp_path / "out.ipynb"), parameters={"sed": 4}, cwd=str(ROOT),
            kernel_name="python3", progress_bar=False,
        )  # fmt: skip
