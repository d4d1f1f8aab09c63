"""Executes a notebook with papermill; a page appears whole, after its last cell has succeeded."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zqlib.errors import InputError, ZqError
from zqlib.files import atomic_output
from zqlib.freshness import load_parameters, note, page

__all__ = ["NotebookError", "carry_text", "execute"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # what an object without a better name prints


class NotebookError(ZqError):
    """A cell of a notebook failed; nothing was left in its place."""


def execute(root: Path, name: str, values: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    """Execute a notebook of a checkout into its profile's folder, and note what it is made from.

    Raises:
        InputError: a parameter is unknown to the notebook.
        NotebookError: a cell failed, or the kernel.
    """
    import nbformat
    import papermill

    folder = load_parameters(root, values).results
    source, output = root / "notebooks" / f"{name}.ipynb", page(folder, name)
    unknown = sorted(set(values) - set(papermill.inspect_notebook(str(source))))
    if unknown:
        raise InputError(f"The notebook {source.name} has no parameter {unknown[0]!r}.")
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"records/{name}_*.json")}
    with atomic_output(output) as temporary:
        try:
            papermill.execute_notebook(
                # absolute, because papermill changes the working directory meanwhile
                str(source.resolve()), str(temporary.resolve()), parameters=dict(values),
                cwd=str(root),
                kernel_name="python3", log_output=True, progress_bar=False,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise NotebookError(
                f"{source.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
            ) from error
        except RuntimeError as error:  # killed, for want of memory perhaps, or never started
            raise NotebookError(
                f"The kernel of {source.name} failed ({error}); try again."
            ) from error
        notebook = nbformat.read(temporary, as_version=4)  # type: ignore[no-untyped-call]
        _forget_the_clock(notebook)
        _hide_parameters(notebook)
        nbformat.write(notebook, temporary)  # type: ignore[no-untyped-call]
    if values.keys() == {"profile"}:  # what a whole run did not write again is of an earlier one
        for path, written in before.items():
            if path.stat().st_mtime_ns == written:
                path.unlink()
    note(folder, name, made_from)


def carry_text(root: Path, folder: Path, name: str, made_from: Mapping[str, Any]) -> None:
    """Give a fresh page the present text of its notebook, whose code is the same, without a run."""
    import nbformat

    output = page(folder, name)
    notebook, executed = (
        nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        for path in (root / "notebooks" / f"{name}.ipynb", output)
    )
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    shown = [cell for cell in executed.cells if cell.cell_type == "markdown"]
    if len(texts) == len(shown) and texts != [cell.source for cell in shown]:
        for cell, text in zip(shown, texts, strict=True):
            cell.source = text
        with atomic_output(output) as temporary:
            nbformat.write(executed, temporary)  # type: ignore[no-untyped-call]
        note(folder, name, made_from)


def _hide_parameters(notebook: Any) -> None:
    """Keep the defaults and what papermill has put after them off the page, but in the notebook."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if {"parameters", "injected-parameters"} & {*tags}:
            cell.metadata["tags"] = [*tags, "remove-cell"]


def _forget_the_clock(notebook: Any) -> None:
    """Drop times, progress bars, addresses and random names: the same run gives the same bytes."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{index}".encode()).hexdigest()[:8]
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if plain := output.get("data", {}).get("text/plain"):
                output.data["text/plain"] = _ADDRESS.sub("", plain)
            if outputs and output.get("name") == outputs[-1].get("name") == "stdout":
                outputs[-1].text += output.text  # what came between decided where it was split
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
