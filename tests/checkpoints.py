"""A tiny checkpoint and a few noises to hear with it, as files: what a user would bring."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from zqlib.audio import MelConfig
from zqlib.corpora.manifest import Utterance, write_manifest
from zqlib.files import write_json
from zqlib.freshness import inputs, load_parameters, made_from
from zqlib.models import CTCModel, load_model
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC
from zqlib.models.layers import BatchNorm
from zqlib.models.nemo import write_nemo
from zqlib.notebooks import execute
from zqlib.quantization.scheme import QuantScheme, usual_scheme
from zqlib.quantized_model import QuantizedModel, quantize
from zqlib.synthesis import SynthesisConfig, as_calibration, synthesize
from zqlib.training.config import nemo_config

ROOT = Path(__file__).parents[1]
SAMPLE_RATE = 16000
SYNTHESIS = SynthesisConfig(batches=1, batch_size=2, frames=64, min_frames=64, steps=5)
BLOCKS = (
    BlockConfig(8, 1, 5, stride=2, separable=True),
    BlockConfig(8, 2, 3, residual=True, separable=True),
    BlockConfig(12, 1, 1),
)


def write_checkpoint(path: Path, seed: int = 0, blocks: tuple[BlockConfig, ...] = BLOCKS) -> Path:
    """A random QuartzNet of about 1,600 parameters, with BatchNorm layers that do something."""
    config = nemo_config(blocks, MelConfig())
    network = JasperCTC(JasperConfig.from_nemo(config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.requires_grad_(False).normal_(0, 0.4, generator=generator)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.2, 2.0, generator=generator)
    write_nemo(path, config, network.state_dict())
    return path


def checkpoint(folder: Path, seed: int = 0, **options: Any) -> CTCModel:
    """The same, loaded."""
    return load_model(write_checkpoint(folder / f"tiny{seed}.nemo", seed, **options))


def quantized(model: CTCModel, scheme: QuantScheme | None = None) -> QuantizedModel:
    """Quantized on synthetic data, by what is usual for 8 bits if no scheme is given."""
    batches = as_calibration(synthesize(model.network, 64, SYNTHESIS, progress=False))
    details = {"kind": "synthetic", "synthesis": SYNTHESIS.to_json()}
    scheme = scheme or usual_scheme("w8a8", model.family)
    return quantize(model, batches, scheme, details)


def write_audio(
    path: Path, duration_s: float = 0.5, seed: int = 0, sample_rate: int = SAMPLE_RATE,
    channels: int = 1,
) -> Path:  # fmt: skip
    """Noise, whose loudness and colour change."""
    generator = np.random.default_rng(seed)
    frames = int(duration_s * sample_rate)
    noise = generator.normal(size=(frames, channels)) * 0.1
    envelope = 1 + np.sin(np.linspace(0, 20 + seed, frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.cumsum(noise, 0) * 0.02 + noise * envelope[:, None], sample_rate)
    return path


def write_corpus(folder: Path, count: int = 3) -> Path:
    """A manifest of `count` noises of different lengths."""
    texts = ("one two", "yes", "stop at once", "no", "a b c")
    utterances = []
    for index in range(count):
        duration_s = 0.4 + 0.15 * index
        path = write_audio(folder / "audio" / f"{index}.wav", duration_s, index)
        utterances.append(Utterance(path, duration_s, texts[index % len(texts)]))
    write_manifest(folder / "test.jsonl", utterances)
    return folder / "test.jsonl"


def write_project(root: Path, utterances: int = 2) -> Path:
    """A checkout as `zq reproduce` needs one: our notebooks, and a profile `smoke` of seconds."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    write_checkpoint(root / "tiny.nemo")
    write_corpus(root / "corpus", utterances)
    split = {"corpus": "noises", "split": "test", "manifest": "corpus/test.jsonl"}
    profile = {
        "name": "smoke",
        "description": "A tiny model and a few noises.",
        "models": [{"path": "tiny.nemo", "caveats": ["random weights"]}],
        "corpora": [split | {"complete_utterances": 9, "caveats": ["noises"]}],
        "schemes": ["w8a8", "w4a8"],
        "synthesis": SYNTHESIS.to_json(),
        "ablations": [
            {"name": "mse", "changes": {"range_method": "mse"}},
            {"name": "stream-8", "changes": {"stream_bits": 8}, "families": ["conformer"]},
        ],
    }
    write_json(root / "workflow" / "profiles" / "smoke.json", profile)
    shutil.copy(ROOT / "workflow" / "Snakefile", root / "workflow")
    return root


def execute_pages(root: Path, *names: str) -> None:
    """Execute notebooks of the profile `smoke` in this process."""
    values = {"profile": "smoke"}
    digests = inputs(root, load_parameters(root, values).load_profile(), required=True)
    for name in names:
        execute(root, name, values, made_from(root, name, values, digests))


def listen_to_interrupts() -> None:
    """For a child process: a suite that a shell runs in the background inherits a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
