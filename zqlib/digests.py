"""What a result is made from, as digests: sources, packages, data.

A result depends on the modules of zqlib that its code imports, directly or through others, and on
nothing else in the package. They are found in syntax trees, so nothing is executed; comments,
docstrings and the layout of the code do not count.
"""

import ast
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from zqlib.corpora.manifest import read_manifest
from zqlib.errors import InputError

__all__ = [
    "cache_key",
    "code_digest",
    "data_digest",
    "environment",
    "imported_names",
    "imports",
    "sources",
]

_PACKAGE = Path(__file__).parent
_LENGTH = 16  # hexadecimal digits: enough to tell versions of one thing apart


def sources(modules: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """Digests of the modules of zqlib that `modules` (dotted names) reach, themselves included.

    Args:
        modules: where to begin.
        without: modules to leave out, with what only they reach.
    """
    return {name: _digest(name) for name in sorted(_closure(modules, without))}


def environment(names: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions that provide the importable `names`, as installed here.

    The local part of a version (`+cpu`) is left out: constraints.txt, which decides what is
    installed, does not name it.
    """
    found = {
        distribution: importlib.metadata.version(distribution).partition("+")[0]
        for name in names
        for distribution in _distributions().get(name, ())
    }
    return dict(sorted(found.items()))


def imports(modules: Iterable[str]) -> set[str]:
    """Top-level names of other packages that `modules` and what they reach of zqlib import."""
    found = {name.partition(".")[0] for module in _closure(modules) for name in _imported(module)}
    return found - set(sys.stdlib_module_names) - {"zqlib"}


def code_digest(source: str) -> str:
    """Digest of Python code that comments, docstrings and layout do not change."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:_LENGTH]


def data_digest(manifest: Path) -> str:
    """SHA-256 over a manifest's transcripts and the bytes of its audio.

    Raises:
        InputError: the manifest cannot be read, or a recording is missing.
    """
    digest = hashlib.sha256()
    for utterance in read_manifest(manifest):
        digest.update(utterance.text.encode())
        if not utterance.audio_path.is_file():
            raise InputError(f"{utterance.audio_path}, named by {manifest}, does not exist.")
        digest.update(utterance.audio_path.read_bytes())
    return digest.hexdigest()


def cache_key(*modules: str, **parts: Any) -> str:
    """A short name for what these modules, in this environment, make from `parts`, JSON-able."""
    made_from = {
        **parts,
        "sources": sources(modules),
        "environment": environment(imports(modules)),
    }
    text = json.dumps(made_from, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def _closure(modules: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    reached: set[str] = set()
    waiting, left_out = list(modules), {*without}
    while waiting:
        name = waiting.pop()
        if name in reached or name in left_out or not _path(name):
            continue
        reached.add(name)
        waiting += [name.rpartition(".")[0], *_imported(name)]
    return reached


def imported_names(source: str) -> Iterator[str]:
    """Dotted names that Python code imports; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _imported(name: str) -> frozenset[str]:
    path = _path(name)
    return frozenset(imported_names(path.read_text(encoding="utf-8")) if path else ())


@cache
def _path(name: str) -> Path | None:
    """The file of a module of zqlib; None for whatever else."""
    base = _PACKAGE.parent.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_relative_to(_PACKAGE) and path.is_file():
            return path
    return None


@cache
def _digest(name: str) -> str:
    path = _path(name)
    assert path is not None
    digest = hashlib.sha256(code_digest(path.read_text(encoding="utf-8")).encode())
    if path.name == "__init__.py":  # a package that compiles kernels depends on their sources
        for kernel in sorted(path.parent.glob("kernels/*")):
            digest.update(kernel.name.encode() + kernel.read_bytes())
    return digest.hexdigest()[:_LENGTH]


@cache
def _distributions() -> dict[str, list[str]]:
    found = importlib.metadata.packages_distributions()
    return {name: sorted(set(distributions)) for name, distributions in found.items()}
