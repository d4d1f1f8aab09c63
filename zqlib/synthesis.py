"""Zero-shot data: mel features whose batch statistics match the stored BatchNorm statistics.

No dataset is involved. Starting from uniform noise, Adam moves the features themselves until, at
the input of every BatchNorm (residual branches included), mean and deviation over batch and time
agree with the running statistics that training left behind (Q-ASR, arXiv 2103.16827; ZeroQ, arXiv
2001.00281). The default numbers are those of the authors' code; `REDUCED` is the cheaper setting
that `zq quantize` uses.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from zqlib import batch_statistics, noise, objectives
from zqlib.batch_statistics import (
    BatchStatistics,
    Statistics,
    distance,
    divergence,
    layer_statistics,
    pooled,
)
from zqlib.devices import device_of
from zqlib.errors import InputError
from zqlib.files import atomic_output
from zqlib.models import layers
from zqlib.models.layers import valid_frames
from zqlib.noise import pink_noise, speech_shaped_noise
from zqlib.objectives import LayerNormInputs, output_entropy, roughness

__all__ = [
    "REDUCED",
    "SynthesisConfig",
    "SyntheticBatch",
    "as_calibration",
    "synthesize",
]

Deviation = Literal["model", "authors"]
Objective = Literal["kl", "squares"]
Initialisation = Literal["uniform", "pink", "speech"]
_SEEDS = 2**32
_NOISES = {"pink": pink_noise, "speech": speech_shaped_noise}
_OBJECTIVES = {"kl": divergence, "squares": distance}
_AUTHORS_EPS = 1e-6  # the authors' sqrt(var + 1e-6), where the model's BatchNorm has 1e-3


@dataclass(frozen=True)
class SynthesisConfig:
    """Parameters of the synthesis.

    Attributes:
        batches, batch_size, frames: shape of the synthetic set; each batch is optimised alone,
            unless `joint`.
        min_frames: lengths are drawn from [min_frames, frames], and statistics are taken over the
            valid frames; equal to `frames`, every utterance is full (the authors' setting).
        steps: Adam steps per batch.
        learning_rate: at the start; ReduceLROnPlateau lowers it tenfold after `patience` steps
            without progress, down to `min_learning_rate`.
        initialisation: `uniform` starts from U(-init_amplitude, init_amplitude), as the authors;
            `pink` from noise whose spectrum falls as 1/f over time and over bands, with mean 0
            and deviation 1 per band: what normalised log-mels of any slowly changing sound have;
            `speech` from that in phrases, syllables and pauses.
        init_amplitude: of the uniform noise.
        deviation: `model` puts the BatchNorm's own eps under the square root of both variances;
            `authors` puts 1e-6 (paper.md, shortcut 6).
        objective: what is minimised, summed over layers: `kl`, the divergence of the normal
            distributions, as the authors; or `squares`, the squared differences of means and
            deviations, as ZeroQ does for images.
        joint: match the statistics over the whole set: those of a batch are pooled with those of
            the batches before it, which stay as they are; all weigh the same. So each batch
            makes up for what the earlier ones missed.
        entropy: weight of a term, the mean entropy of the output's distributions (nats).
        smoothness: of another, the mean square of the step from one frame to the next.
        layer_norm: of a third, how far the channels that a LayerNorm has normalised are from
            mean 0 and deviation 1 over time: the divergence, summed over layers. All three are
            of a batch alone (zqlib.objectives); 0, the authors' setting, leaves a term out.
        seed: of the initial noise and the lengths; batch i uses seed + i.
        bfloat16: compute products in bfloat16, on a GPU too; pays where there are instructions
            for it.
    """

    batches: int = 20
    batch_size: int = 8
    frames: int = 500
    min_frames: int = 500
    steps: int = 200
    learning_rate: float = 0.05
    patience: int = 25
    min_learning_rate: float = 1e-4
    initialisation: Initialisation = "uniform"
    init_amplitude: float = 0.3
    deviation: Deviation = "model"
    objective: Objective = "kl"
    joint: bool = False
    entropy: float = 0.0
    smoothness: float = 0.0
    layer_norm: float = 0.0
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size", "frames", "min_frames", "patience"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InputError(f"The synthesis needs an integer {name} of at least 1.")
        if type(self.steps) is not int or self.steps < 0:
            raise InputError("The synthesis needs an integer number of steps of at least 0.")
        if self.min_frames > self.frames:
            raise InputError("The synthesis needs min_frames of at most frames.")
        for name in ("learning_rate", "min_learning_rate", "init_amplitude"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise InputError(f"The synthesis needs a positive number as its {name}.")
        for name in ("entropy", "smoothness", "layer_norm"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise InputError(f"The synthesis needs a number of at least 0 as its {name}.")
        if self.smoothness and self.min_frames < 2:
            raise InputError("Smoothness needs min_frames of at least 2.")
        if type(self.seed) is not int or not 0 <= self.seed < _SEEDS:
            raise InputError(f"The synthesis needs an integer seed from 0 to {_SEEDS - 1}.")
        for name in ("joint", "bfloat16"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"The synthesis needs true or false as its {name}.")
        if self.initialisation not in get_args(Initialisation):
            known = ", ".join(get_args(Initialisation))
            raise InputError(f"initialisation is {self.initialisation!r}; use {known}.")
        if self.initialisation != "uniform" and self.frames < 2:
            raise InputError("Pink noise needs at least 2 frames.")
        if self.deviation not in get_args(Deviation):
            raise InputError(f"deviation is {self.deviation!r}; use 'model' or 'authors'.")
        if self.objective not in get_args(Objective):
            raise InputError(f"objective is {self.objective!r}; use 'kl' or 'squares'.")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_json` reads back to an equal config."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a mapping.

        Raises:
            InputError: it is no mapping, a key is unknown or a value impossible.
        """
        if not isinstance(value, Mapping):
            raise InputError("The synthesis config must be a JSON object.")
        if unknown := sorted(set(value) - {field.name for field in fields(cls)}):
            raise InputError(f"The synthesis config has the unknown key {unknown[0]!r}.")
        return cls(**value)


REDUCED = SynthesisConfig(batches=1, steps=20, initialisation="speech")
"""The default of `zq quantize`: about a minute for QuartzNet-15x5 on one core.

The book's page on the budget of the synthesis compares it with longer ones, which gained nothing
there that the intervals could tell from chance.
"""


@dataclass(frozen=True)
class SyntheticBatch:
    """Synthetic utterances and how they came about.

    Attributes:
        features: (batch, n_mels, frames) float32, zero beyond each length.
        lengths: (batch,) int64.
        loss: (steps + 1, layers) float32: the objective at every BatchNorm before each step, and
            after the last; of joint batches, with all those before.
    """

    features: Tensor
    lengths: Tensor
    loss: Tensor


def synthesize(
    network: nn.Module,
    n_mels: int,
    config: SynthesisConfig,
    cache: Path | None = None,
    progress: bool = True,
) -> list[SyntheticBatch]:
    """Optimise a synthetic set against a network's BatchNorm statistics.

    Args:
        network: (features, lengths) -> log-probabilities (batch, frames', classes) and lengths,
            with `BatchNorm` layers, in evaluation mode; on a GPU, all but the initial noise is
            computed there.
        n_mels: mel bands of the features.
        config: the parameters.
        cache: a folder where each finished batch is kept, so that an interrupted synthesis
            continues with the next batch. The names of its files depend on everything that the
            result depends on.
        progress: show a bar on standard error.

    Returns:
        `config.batches` batches, on the CPU.

    Raises:
        InputError: the network has no BatchNorm, or no LayerNorm where they shall be matched; or
            the loss is not finite (a learning rate that is too large).
    """
    identity = _identity(network, n_mels, config)
    batches = []
    earlier: Statistics = {}
    device = device_of(network)
    with tqdm(
        total=config.batches * config.steps, desc="synthesis", unit="step", disable=not progress
    ) as bar:
        for index in range(config.batches):
            path = cache / f"{identity}-{index:03d}.safetensors" if cache else None
            batch = _load_batch(path) if path else None
            if batch is None:
                batch = _synthesize_batch(network, n_mels, config, index, earlier, bar)
                if path:
                    with atomic_output(path) as temporary:
                        save_file(vars(batch), temporary)
            else:
                bar.update(config.steps)
            batches.append(batch)
            if config.joint:
                found = layer_statistics(
                    network, batch.features.to(device), batch.lengths.to(device)
                )
                earlier = pooled(earlier, found, 1 / (index + 1))
    return batches


def _identity(network: nn.Module, n_mels: int, config: SynthesisConfig) -> str:
    settings = config.to_json()
    del settings["batches"]  # a longer set begins with the batches of a shorter one
    # the printed network has what its weights do not show: strides, dilations, eps
    parts = [settings, n_mels, torch.__version__, str(network)]
    if (device := device_of(network)).type != "cpu":
        parts.append(torch.cuda.get_device_name(device))
    digest = hashlib.sha256(json.dumps(parts).encode())
    # the cache outlives a version of this package
    for module in (
        __file__,
        batch_statistics.__file__,
        noise.__file__,
        objectives.__file__,
        layers.__file__,
        inspect.getfile(type(network)),
    ):
        digest.update(Path(module).read_bytes())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_batch(path: Path) -> SyntheticBatch | None:
    try:
        return SyntheticBatch(**load_file(path))
    except (SafetensorError, OSError, TypeError):
        return None  # absent or damaged: made again


def _synthesize_batch(
    network: nn.Module,
    n_mels: int,
    config: SynthesisConfig,
    index: int,
    earlier: Statistics,
    bar: Any,
) -> SyntheticBatch:
    generator = torch.Generator().manual_seed(config.seed + index)
    shape = (config.batch_size, n_mels, config.frames)
    if config.initialisation in _NOISES:
        features = _NOISES[config.initialisation](shape, generator)
    else:
        features = (2 * torch.rand(shape, generator=generator) - 1) * config.init_amplitude
    lengths = torch.randint(
        config.min_frames, config.frames + 1, (config.batch_size,), generator=generator
    )
    # drawn on the CPU, so that a seed means the same on every device
    device = device_of(network)
    features, lengths = features.to(device), lengths.to(device)
    valid = valid_frames(config.frames, lengths)[:, None, :]
    features = (features * valid).requires_grad_()
    optimizer = torch.optim.Adam([features], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=config.patience, min_lr=config.min_learning_rate
    )
    history = []
    layer_norms = LayerNormInputs(network) if config.layer_norm else None
    with BatchStatistics(network) as statistics, layer_norms or nullcontext():
        for step in range(config.steps + 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                log_probs, out_lengths = network(features, lengths)
            found = pooled(earlier, statistics.values, 1 / (index + 1))
            losses = torch.stack(
                [
                    _OBJECTIVES[config.objective](
                        norm,
                        *found[name],
                        eps=norm.eps if config.deviation == "model" else _AUTHORS_EPS,
                    )
                    for name, norm in statistics.norms.items()
                ]
            )
            history.append(losses.detach())
            loss = losses.sum()
            if config.entropy:
                loss = loss + config.entropy * output_entropy(log_probs, out_lengths)
            if config.smoothness:
                loss = loss + config.smoothness * roughness(features, lengths)
            if layer_norms:
                loss = loss + config.layer_norm * layer_norms.divergence(out_lengths)
            if not torch.isfinite(loss):
                raise InputError(
                    f"The synthesis diverged at step {step}; choose a smaller learning rate."
                )
            if step == config.steps:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            assert features.grad is not None
            features.grad *= valid  # frames beyond a length stay zero
            optimizer.step()
            schedule.step(loss.item())
            bar.update()
            bar.set_postfix(batch=index, loss=f"{loss.item():.1f}")
    return SyntheticBatch(features.detach().cpu(), lengths.cpu(), torch.stack(history).cpu())


def as_calibration(batches: Sequence[SyntheticBatch]) -> list[tuple[Tensor, Tensor]]:
    """The features and lengths alone, as `calibrate` takes them."""
    return [(batch.features, batch.lengths) for batch in batches]
