"""Synthesis and rounding elsewhere than on the CPU.

Without a GPU, a stand-in shows that every tensor is where its peers are; a real one shows that its
numbers are the CPU's but for rounding.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import pytest
import tiny
import tiny_conformer
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from zqlib import devices
from zqlib.errors import InputError
from zqlib.integer import reference
from zqlib.models import Network
from zqlib.quantization import adaround, reconstruction
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.lower import lower
from zqlib.quantization.prepare import prepare
from zqlib.quantization.scheme import QuantScheme, preset
from zqlib.quantized_model import load_quantized, round_features
from zqlib.synthesis import SynthesisConfig, synthesize

Run = Callable[..., tuple[int, str, str]]
ELSEWHERE = torch.device("meta")
NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "quartznet": (lambda: tiny.network("residual"), tiny.N_MELS),
    "jasper": (lambda: tiny.network("dense residual"), tiny.N_MELS),
    "conformer": (tiny_conformer.network, tiny_conformer.N_MELS),
}
SCHEMES = {
    "nearest": QuantScheme(weight_rounding="nearest", bias_correction=True),
    "gptq": preset(
        "w4a8", weight_rounding="gptq", range_method="percentile", weight_range_method="mse"
    ),
    "adaround": preset("w4g16a8", weight_rounding="adaround", range_method="mse"),
    "mixed": preset("w4.5g16a8"),
    "blocks": preset("w4g16a8", block_reconstruction=True),
}
each_network = pytest.mark.parametrize("family", NETWORKS)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def config(family: str, **changes: Any) -> SynthesisConfig:
    """Utterances of unequal lengths, and every term of the objective."""
    values: dict[str, Any] = {
        "batches": 2, "batch_size": 3, "frames": 64, "min_frames": 40, "steps": 3, "joint": True,
        "entropy": 0.1, "smoothness": 0.1, "layer_norm": 0.1 if family == "conformer" else 0.0,
    }  # fmt: skip
    return SynthesisConfig(**values | changes)


def batches(n_mels: int) -> list[tuple[Tensor, Tensor]]:
    lengths = torch.tensor([80, 50])
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, n_mels, 80, generator=generator), lengths) for _ in range(2)]


def tensors(graph: FloatGraph) -> list[Tensor]:
    return [v for o in graph.operators for v in vars(o).values() if isinstance(v, Tensor)]


class Inside(Tensor):
    """A tensor of the stand-in: `inner`, which is on the CPU, but says it is elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=ELSEWHERE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise AssertionError("a tensor has left its stand-in")


class StandIn(TorchDispatchMode):
    """Computes what is `Inside` on the CPU, and refuses to mix it with tensors that are not.

    As on a GPU, only a tensor without axes may come from the CPU.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inside = any(isinstance(x, Inside) for x in read)
        if kwargs.get("device") is not None:  # made from nothing, or moved
            inside = kwargs["device"] == ELSEWHERE
            kwargs["device"] = torch.device("cpu")
        elif inside and any(x.ndim and not isinstance(x, Inside) for x in read):
            raise RuntimeError(f"{func} mixes devices")
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Inside) else x, (args, kwargs))
        result = func(*args, **kwargs)
        return tree_map(lambda x: Inside(x) if inside and isinstance(x, Tensor) else x, result)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in for a GPU; `cuda` names it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it has none
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "stand-in")
    monkeypatch.setattr(devices, "choose_device", lambda _: ELSEWHERE)
    for module in (adaround, reconstruction):
        monkeypatch.setattr(module, "_STEPS", 5)  # it is slow
    with StandIn():
        yield


@each_network
def test_the_synthesis_is_the_same_elsewhere(family: str, stand_in: None, tmp_path: Path) -> None:
    build, n_mels = NETWORKS[family]
    expected = synthesize(build(), n_mels, config(family), tmp_path, progress=False)
    network = build().to(ELSEWHERE)
    found = synthesize(network, n_mels, config(family), tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4, "the cache tells devices apart"
    for ours, theirs in zip(expected, found, strict=True):
        for name, value in vars(theirs).items():
            assert type(value) is Tensor and torch.equal(value, vars(ours)[name])


@each_scheme
@each_network
def test_the_program_is_the_same_from_elsewhere(
    family: str, scheme: QuantScheme, stand_in: None
) -> None:
    build, n_mels = NETWORKS[family]
    expected, scales = prepare(build(), batches(n_mels), scheme)
    found = prepare(build().to(ELSEWHERE), batches(n_mels), scheme)
    assert found[1] == scales
    for ours, theirs in zip(tensors(expected), tensors(found[0]), strict=True):
        assert not isinstance(theirs, Inside) and torch.equal(ours, theirs)


def test_the_stand_in_minds_tensors_that_are_not_moved(stand_in: None) -> None:
    with pytest.raises(RuntimeError, match="mixes devices"):
        torch.ones(2, device=ELSEWHERE) + torch.ones(2)


def test_commands_compute_elsewhere_and_say_so(
    zq: Run, here: Path, prepared: Path, request: pytest.FixtureRequest
) -> None:
    model, fast = prepared / "tiny0.nemo", ("--synthesis", prepared / "fast.json", "--quiet")
    assert zq("quantize", model, "-o", "cpu.zq", *fast)[0] == 0
    assert zq("quantize", model, "-o", "named.zq", *fast, "--device", "cpu")[0] == 0
    assert Path("cpu.zq").read_bytes() == Path("named.zq").read_bytes()
    request.getfixturevalue("stand_in")
    status, out, err = zq("quantize", model, "-o", "gpu.zq", *fast, "--device", "cuda")
    assert status == 0 and "synthetic calibration on stand-in (" in out, err
    ours, theirs = load_quantized(Path("cpu.zq")), load_quantized(Path("gpu.zq"))
    assert theirs.calibration == ours.calibration | {"device": "stand-in"}
    assert theirs.input_scale == ours.input_scale
    for target in ("onnx", "onnx-integer"):
        export = ("export", model, "--to", target, *fast, "--device", "cuda")
        status, _, err = zq(*export, "-o", f"{target}.onnx")
        assert status == 0, err
        assert '"device": "stand-in"' in Path(f"{target}.md").read_text()
    engines = ("--engine", "float", "--engine", "reference")
    manifest = prepared / "test.jsonl"
    compare = ("compare", model, manifest, *engines, *fast, "--device", "cuda", "--format", "json")
    status, out, err = zq(*compare)
    assert status == 0, err
    assert {row["engine"] for row in json.loads(out)} == {"float", "reference"}


@pytest.mark.parametrize("command", ["quantize", "export"])
@pytest.mark.parametrize(("name", "reason"), [("cuda", "sees no CUDA GPU"), ("tpu", "unknown")])
def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(
    zq: Run, here: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = "a.zq" if command == "quantize" else "a.onnx"
    status, out, err = zq(command, "absent.nemo", "-o", output, "--device", name)
    assert status == 1 and out == "" and reason in err and err.count("\n") == 1


def test_a_device_is_refused_where_nothing_is_calibrated(zq: Run, here: Path) -> None:
    export = ("export", "absent.nemo", "--to", "onnx-float", "-o", "a.onnx")
    assert "needs no calibration" in zq(*export, "--device", "cuda")[2]


@pytest.fixture
def gpu() -> torch.device:
    try:
        return devices.choose_device("cuda")
    except InputError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


def test_a_gpu_computes_float32_products_in_float32(gpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(4, 256, 1, 64, generator=generator),
                 torch.randn(64, 256, 1, 5, generator=generator))  # fmt: skip
    expected = torch.conv2d(x.double(), weight.double())
    error = torch.conv2d(x.to(gpu), weight.to(gpu)).cpu() - expected
    assert error.abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("bfloat16", [False, True])
@each_network
def test_a_gpu_synthesizes_as_the_cpu_does(
    family: str, bfloat16: bool, gpu: torch.device, tmp_path: Path
) -> None:
    build, n_mels = NETWORKS[family]
    settings = config(family, steps=30, bfloat16=bfloat16)
    network = build().to(gpu)
    untouched = config(family, steps=0, bfloat16=bfloat16, batches=1)
    (start,) = synthesize(build(), n_mels, untouched, progress=False)
    (start_there,) = synthesize(network, n_mels, untouched, progress=False)
    assert torch.equal(start.features, start_there.features)
    assert torch.equal(start.lengths, start_there.lengths)
    ours = synthesize(build(), n_mels, settings, tmp_path, progress=False)
    theirs = synthesize(network, n_mels, settings, tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4, "the cache tells devices apart"
    for here, there in zip(ours, theirs, strict=True):
        assert all(value.device.type == "cpu" for value in vars(there).values())
        losses, losses_there = here.loss.sum(1), there.loss.sum(1)
        exact = 0.05 if bfloat16 else 1e-3
        torch.testing.assert_close(losses_there[0], losses[0], rtol=exact, atol=0)
        torch.testing.assert_close(losses_there[-1], losses[-1], rtol=0.1, atol=0)
        assert losses_there[-1] < 0.9 * losses_there[0]


@each_scheme
@each_network
def test_a_gpu_makes_a_program_like_the_cpus(
    family: str, scheme: QuantScheme, gpu: torch.device
) -> None:
    build, n_mels = NETWORKS[family]
    _, scales = prepare(build(), batches(n_mels), scheme)
    graph, found = prepare(build().to(gpu), batches(n_mels), scheme)
    assert found == pytest.approx(scales, rel=0.02)
    assert all(value.device.type == "cpu" for value in tensors(graph))
    features, lengths = batches(n_mels)[0]
    program = lower(graph, found, scheme)
    output = reference.run(program, round_features(program, found[graph.input], features), lengths)
    expected = build()(features, lengths)[0].argmax(-1)
    assert (output.tokens == expected)[:1].float().mean() > 0.6


def test_a_program_names_its_gpu(zq: Run, here: Path, prepared: Path, gpu: torch.device) -> None:
    fast = ("--synthesis", prepared / "fast.json", "--quiet", "--device", "cuda")
    status, out, err = zq("quantize", prepared / "tiny0.nemo", "-o", "a.zq", *fast)
    name = torch.cuda.get_device_name(gpu)
    assert status == 0 and f"calibration on {name} (" in out, err
    assert load_quantized(Path("a.zq")).calibration["device"] == name
