"""Type stubs of TensorRT's Python API, made from its real bindings where the library is missing.

The wheels of the bindings come from the package registry, but they link against libraries that are
fetched from elsewhere. Null libraries with the nine functions that the bindings name let them be
imported, in a process of their own, only to write down their API; nothing can be built with them.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry", "getPluginRegistry", "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


def make_stub(version: str, folder: Path) -> Path:
    """Write `tensorrt/__init__.pyi` of that version into a folder, for mypy to find there.

    The test is skipped where there is no C compiler or no package registry.
    """
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    bindings, stubs = folder / "bindings", folder / "stubs"
    command = ("pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--dest", folder)  # fmt: skip
    download = run_python(*command, f"tensorrt-cu12-bindings=={version}")
    if download.returncode:
        pytest.skip(f"no bindings {version} from the registry: {download.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(bindings)
    source = folder / "null.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        output = folder / f"lib{library}.so.{version.partition('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, source], check=True)
    made = run_python(
        "pybind11_stubgen", "tensorrt_bindings.tensorrt", "--output-dir", stubs,
        LD_LIBRARY_PATH=folder, PYTHONPATH=bindings,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    text = (stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    # signatures that are no Python: a parameter called `in`, and one without a default at the end
    text = re.sub(r"(?<=[(, ])in: ", "in_: ", text)
    text = text.replace(
        "channel_axis: typing.SupportsInt)", "channel_axis: typing.SupportsInt = 0)"
    )
    stub = stubs / "tensorrt" / "__init__.pyi"
    stub.parent.mkdir()
    # the generator forgets this import, and the version is not in the compiled module
    stub.write_text(f"{text}\nimport typing_extensions\n__version__: str\n")
    return stubs


def check_types(source: Path, stubs: Path) -> str:
    """What mypy says of a file, as strict as for the package, with these stubs."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (untyped,) = (part for part in settings["overrides"] if "follow_imports" in part)
    modules = [module for module in untyped["module"] if module != "tensorrt.*"]
    config = stubs / "mypy.ini"
    config.write_text(
        f"[mypy]\npython_version = 3.11\nstrict = True\nmypy_path = {stubs}\n"
        f"[mypy-{','.join(modules)}]\nfollow_imports = skip\nignore_missing_imports = True\n"
        "[mypy-tensorrt]\nignore_errors = True\n"
    )
    assert len(modules) == len(untyped["module"]) - 1
    checked = run_python("mypy", "--config-file", config, "--no-error-summary", source)
    assert checked.stderr == ""
    return checked.stdout


def run_python(
    module: str, *arguments: object, **environment: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
