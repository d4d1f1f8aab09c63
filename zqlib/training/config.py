"""What decides a training run, and the NeMo config of the model that it trains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from zqlib.audio import MelConfig
from zqlib.errors import InputError
from zqlib.models.conformer import ConformerConfig
from zqlib.models.jasper import BlockConfig

__all__ = ["LABELS", "Encoder", "TrainingConfig", "nemo_config"]

Encoder = tuple[BlockConfig, ...] | ConformerConfig

LABELS = (" ", *"abcdefghijklmnopqrstuvwxyz", "'")

# QuartzNet's shape (a strided stem, residual separable blocks, a wide separable layer, a pointwise
# one) at a twentieth of its size. Dropout and dilated depthwise gradients cost a CPU dearly: the
# last layers alone have dropout, and the wide layer has more taps where QuartzNet's is dilated.
_MINI_QUARTZNET = (
    BlockConfig(160, 1, 11, stride=2, separable=True),
    BlockConfig(160, 3, 13, residual=True, separable=True),
    BlockConfig(192, 3, 15, residual=True, separable=True),
    BlockConfig(224, 3, 17, residual=True, separable=True),
    BlockConfig(256, 3, 21, residual=True, separable=True),
    BlockConfig(256, 1, 33, dropout=0.2, separable=True),
    BlockConfig(384, 1, 1, dropout=0.2),
)


@dataclass(frozen=True)
class TrainingConfig:
    """A training run; with the data, it decides every weight.

    Attributes:
        blocks: the encoder, a QuartzNet or Jasper.
        conformer: a Conformer in its place.
        seed: of the corpus, the initial weights, the order, the distortions and the dropout.
        steps: optimiser steps.
        batch_size: utterances a step.
        learning_rate: its peak, reached after `warmup_share` of the steps, then a cosine to zero.
        weight_decay: AdamW's, decoupled.
        gradient_norm: gradients are clipped to this norm.
        bfloat16: products in bfloat16 (weights, normalisation and loss stay float32).
        mini_utterances: of the mini corpus's training split.
        mini_variants, an4_variants: copies kept of each utterance: the recording, then distorted.
        an4_repeats: times that an epoch visits each AN4 utterance (each mini one: once).
        mini_held_out: of the mini utterances, kept for choosing the checkpoint.
        an4_held_out_every: one of so many AN4 speakers is kept for choosing the checkpoint.
        mask_mels, mask_frames: the widest band and the longest stretch that SpecAugment masks.
        checkpoint_every: steps between two checkpoints, each with a validation.
        threads: of the CPU.
    """

    blocks: tuple[BlockConfig, ...] = _MINI_QUARTZNET
    conformer: ConformerConfig | None = None
    seed: int = 0
    steps: int = 5200
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.06
    gradient_norm: float = 1.0
    bfloat16: bool = True
    mini_utterances: int = 6000
    mini_held_out: int = 100
    mini_variants: int = 2
    an4_variants: int = 6
    an4_repeats: int = 2
    an4_held_out_every: int = 12
    mask_mels: int = 7
    mask_frames: int = 6
    checkpoint_every: int = 200
    threads: int = 1

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "learning_rate", "gradient_norm", "mini_utterances",
                    "mini_variants", "an4_variants", "an4_repeats", "checkpoint_every",
                    "threads")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}.")
        if not self.blocks:
            raise InputError("A network needs at least one block.")
        sizes = (MelConfig().n_mels, len(LABELS))
        if self.conformer and (self.conformer.n_mels, self.conformer.n_classes) != sizes:
            raise InputError("A Conformer to train has {} mels and {} classes.".format(*sizes))
        if not 0 <= self.mini_held_out < self.mini_utterances:
            raise InputError("mini_held_out must be 0 or more, and below mini_utterances.")
        if self.an4_held_out_every < 2:
            raise InputError("an4_held_out_every must be 2 or more, or no speaker is left.")
        if not 0 <= self.warmup_share < 1:
            raise InputError(f"warmup_share must be in [0, 1), not {self.warmup_share}.")
        if min(self.seed, self.weight_decay, self.mask_mels, self.mask_frames) < 0:
            raise InputError("seed, weight_decay and masks must be 0 or more.")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {**asdict(self), "blocks": [asdict(block) for block in self.blocks]}

    @property
    def encoder(self) -> Encoder:
        """What is trained."""
        return self.conformer or self.blocks

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TrainingConfig":
        """Read a JSON object; what it leaves out takes its default.

        Raises:
            InputError: an unknown key, or a value out of range.
        """
        if unknown := sorted(set(value) - {field.name for field in fields(cls)}):
            raise InputError(f"The training config has an unknown key {unknown[0]!r}; remove it.")
        values = dict(value)
        try:
            if values.get("conformer") is not None:
                values["conformer"] = ConformerConfig(**values["conformer"])
            if "blocks" in values:
                values["blocks"] = tuple(BlockConfig(**block) for block in values["blocks"])
            return cls(**values)
        except TypeError as error:
            raise InputError(f"The training config is malformed ({error}).") from error


def nemo_config(encoder: Encoder, mel: MelConfig) -> dict[str, Any]:
    """The `model_config.yaml` of an `EncDecCTCModel` that NeMo restores."""
    if isinstance(encoder, ConformerConfig):
        section, channels = _conformer_section(encoder), encoder.d_model
    else:
        section, channels = _jasper_section(encoder, mel), encoder[-1].filters
    return {
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "sample_rate": mel.sample_rate,
        "labels": list(LABELS),
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": mel.sample_rate,
            "normalize": "per_feature",
            "window_size": mel.window_size_s,
            "window_stride": mel.window_stride_s,
            "window": "hann",
            "features": mel.n_mels,
            "n_fft": mel.n_fft,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": mel.pad_to,
        },
        "encoder": section,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": channels,
            "num_classes": len(LABELS),
            "vocabulary": list(LABELS),
        },
    }


def _jasper_section(blocks: tuple[BlockConfig, ...], mel: MelConfig) -> dict[str, Any]:
    jasper = [
        {
            "filters": block.filters,
            "repeat": block.repeat,
            "kernel": [block.kernel],
            "stride": [block.stride],
            "dilation": [block.dilation],
            "dropout": block.dropout,
            "residual": block.residual,
            "residual_dense": block.residual_dense,
            "separable": block.separable,
        }
        for block in blocks
    ]
    return {
        "_target_": "nemo.collections.asr.modules.ConvASREncoder",
        "feat_in": mel.n_mels,
        "activation": "relu",
        "conv_mask": True,
        "jasper": jasper,
    }


def _conformer_section(conformer: ConformerConfig) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": conformer.n_mels,
        "feat_out": -1,
        "n_layers": conformer.n_layers,
        "d_model": conformer.d_model,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "subsampling_conv_channels": conformer.subsampling_channels,
        "ff_expansion_factor": conformer.ff_expansion,
        "self_attention_model": "rel_pos",
        "n_heads": conformer.n_heads,
        "att_context_size": [-1, -1],
        "xscaling": conformer.xscaling,
        "untie_biases": True,
        "conv_kernel_size": conformer.conv_kernel,
        "conv_norm_type": "batch_norm",
        "dropout": conformer.dropout,
    }
