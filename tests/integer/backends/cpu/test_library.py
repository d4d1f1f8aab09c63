"""The compiled library: what it is made of, and what is said when it cannot be made."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zqlib.errors import InputError
from zqlib.integer.backends.cpu import arguments
from zqlib.integer.backends.cpu import library as module
from zqlib.integer.backends.cpu.library import library, library_path

# Arithmetic, comparison and conversion in single, double, half or bfloat16 precision, and all of
# x87. Moves and shuffles of such registers carry integers too.
ARITHMETIC = (
    r"(add|sub|addsub|hadd|hsub|mul|div|sqrt|min|max|cmp\w*|u?comi|rcp(14|28)?|rsqrt(14|28)?|round"
    r"|rndscale|reduce|range|scalef|getexp|getmant|fixupimm|fpclass|dp|exp2"
    r"|fn?m(add|sub|addsub|subadd)(132|213|231)?)"
)
FLOATING = re.compile(
    rf"v?({ARITHMETIC}[ps][sdh]|cvt\w*|dpbf16ps|dpph?ps)[xyz]?|f(?!ence)\w+(?<!fence)"
)


# The same of AArch64: `fmov` moves, and the `bf` that are not listed are of bit fields.
FLOATING_AARCH64 = re.compile(r"f(?!mov)\w+|[su]cvtf|bf(dot|ml|mm|cvt)\w*")


def floating_point(
    binary: Path, objdump: str = "objdump", floating: re.Pattern[str] = FLOATING
) -> Iterator[str]:
    """Instructions of a binary that compute in floating point."""
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(binary)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        parts = line.split("\t")
        if len(parts) < 2:
            continue
        words = [w for w in parts[1].split() if w not in ("rep", "repz", "repnz", "lock", "bnd")]
        if words and floating.fullmatch(words[0]):
            yield line


def compiled(source: str, folder: Path, *flags: str, compiler: str = "cc") -> Path:
    (folder / "a.c").write_text(source)
    command = [compiler, "-O2", *flags, "-shared", "-fPIC", str(folder / "a.c"), "-o"]
    subprocess.run([*command, str(folder / "a.so")], check=True)
    return folder / "a.so"


def test_no_instruction_computes_in_floating_point() -> None:
    library()
    assert list(floating_point(library_path())) == []


@pytest.mark.parametrize(
    "expression",
    ["x + y", "x * y", "x / y", "x < y", "(int)x", "__builtin_sqrt(x)", "(float)x", "n + 0.5"],
)
@pytest.mark.parametrize("kind", ["float", "double", "long double"])
def test_floating_point_would_be_found(expression: str, kind: str, tmp_path: Path) -> None:
    source = f"{kind} f({kind} x, {kind} y, long n) {{ return {expression}; }}"
    if (expression, kind) != ("(float)x", "float"):
        assert list(floating_point(compiled(source, tmp_path, "-fno-math-errno")))


@pytest.mark.skipif(module.platform.machine() != "x86_64", reason="AVX")
@pytest.mark.parametrize("flag", ["-mfma", "-mavx2", "-mavx512f"])
def test_vectors_of_floating_point_would_be_found(flag: str, tmp_path: Path) -> None:
    source = """void f(float *restrict x, const float *restrict y, int n) {
        for (int i = 0; i < n; ++i) x[i] += 3 * y[i]; }"""
    assert list(floating_point(compiled(source, tmp_path, "-O3", flag)))


def test_integers_are_not_taken_for_floating_point(tmp_path: Path) -> None:
    source = """void f(int *restrict x, const int *restrict y, int n) {
        for (int i = 0; i < n; ++i) x[i] = x[i] * y[i] + (x[i] > 3 ? x[i] : 3) / 7; }"""
    assert list(floating_point(compiled(source, tmp_path, "-O3"))) == []


def test_structs_are_those_of_the_header() -> None:
    """Names and order of all fields."""
    text = (Path(module.__file__).parent / "kernels" / "arguments.h").read_text()
    text = re.sub(r"//.*", "", text)
    for kind in (arguments.Term, arguments.Output, arguments.Step, *arguments.KINDS):
        found = re.search(rf"struct {kind.__name__} {{(.*?)}};", text, re.DOTALL)
        assert found, kind
        declarations = [d for d in found[1].replace("\n", " ").split(";") if d.strip()]
        names = [name.split()[-1].strip("*") for d in declarations for name in d.split(",")]
        assert names == [field[0] for field in kind._fields_]
    order = re.search(r"enum class Kind : int64_t {(.*?)}", text, re.DOTALL)
    assert order
    names = [name.strip().replace("_", "") for name in order[1].split(",") if name.strip()]
    assert names == [kind.__name__.lower() for kind in arguments.KINDS]


def test_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(module, "_compile", lambda p: (calls.append(p), compiled_copy(p)))
    real = compiled_library()

    def compiled_copy(path: Path) -> None:
        path.write_bytes(real)

    for _ in range(2):
        library.__wrapped__()
    assert len(calls) == 1
    assert [p.name for p in (tmp_path / "kernels").iterdir()] == [library_path().name]


def compiled_library() -> bytes:
    with pytest.MonkeyPatch.context() as context:
        context.delenv("ZQ_CACHE", raising=False)
        library()
        return library_path().read_bytes()


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/nowhere/c++", r"'/nowhere/c\+\+', which cannot be run .No such file.*name one in CXX"),
        ("false", r"could not compile its kernels with 'false'"),
    ],
)
def test_without_a_compiler_one_sentence_is_said(
    compiler: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZQ_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(InputError, match=message) as caught:
        library.__wrapped__()
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "kernels").iterdir()) == []


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    code = "import zqlib.recognition, zqlib.integer.backends.cpu"
    environment = {"ZQ_CACHE": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
