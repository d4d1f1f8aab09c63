"""Conformer-CTC (the NeMo `ConformerEncoder` + `ConvASRDecoder`) in plain torch.

Gulati et al. 2020 (arXiv 2005.08100) with the relative-position attention of Dai et al. 2019
(arXiv 1901.02860, section 3.3). Module names follow NeMo's, so that state-dict keys are its own.
A sequence is (batch, frames, channels); frames beyond an utterance's length reach no valid one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zqlib.errors import InputError
from zqlib.models.layers import BatchNorm, valid_frames

__all__ = [
    "Attention",
    "ConformerCTC",
    "ConformerConfig",
    "ConformerLayer",
    "Convolution",
    "FeedForward",
    "Subsampling",
    "relative_positions",
    "relative_shift",
]

_MAX_SIZE = 1 << 14  # far above any published model; bounds what a hostile config can ask for

# Options that may be written out, with the values that are implemented.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "feat_out": (-1,),
    "subsampling": ("striding",),
    "subsampling_factor": (4,),
    "causal_downsampling": (False,),
    "reduction": (None,),
    "reduction_factor": (1,),
    "self_attention_model": ("rel_pos",),
    "att_context_size": (None, [-1, -1]),
    "att_context_style": ("regular",),
    "conv_norm_type": ("batch_norm",),
    "conv_context_size": (None,),
    "use_bias": (True,),
}


@dataclass(frozen=True)
class ConformerConfig:
    """A whole network: mel bands in, Conformer layers, classes out (the CTC blank excluded).

    Attributes:
        n_mels: mel bands.
        n_layers: Conformer layers.
        d_model: channels of the residual stream.
        n_heads: attention heads; they share `d_model` evenly.
        n_classes: classes without the blank.
        subsampling_channels: of the two strided convolutions.
        ff_expansion: hidden channels of a feed-forward module per channel of the stream.
        conv_kernel: taps of the depthwise convolution.
        xscaling: the stream starts out multiplied by sqrt(d_model).
        dropout: of what a module adds to the stream, in training.
    """

    n_mels: int
    n_layers: int
    d_model: int
    n_heads: int
    n_classes: int
    subsampling_channels: int
    ff_expansion: int = 4
    conv_kernel: int = 31
    xscaling: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.n_mels, self.n_layers, self.d_model, self.n_heads, self.n_classes,
                 self.subsampling_channels, self.ff_expansion, self.conv_kernel)  # fmt: skip
        if any(type(n) is not int for n in sizes) or type(self.xscaling) is not bool:
            raise InputError("A Conformer has a size that is no integer; check the model config.")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise InputError("A Conformer has a dropout outside [0, 1); check the model config.")
        if min(sizes) < 1 or max(sizes) > _MAX_SIZE:
            raise InputError(
                f"A Conformer has a size outside 1 to {_MAX_SIZE} ({self}); check the model config."
            )
        if self.d_model % self.n_heads or self.d_model % 2 or self.conv_kernel % 2 == 0:
            raise InputError(
                "A Conformer needs an even d_model that its heads divide, and an odd "
                f"conv_kernel_size; check the model config ({self})."
            )

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any]) -> "ConformerConfig":
        """Read a NeMo `model_config.yaml` of an `EncDecCTCModelBPE` (or of characters).

        Raises:
            InputError: a section is missing, or asks for an option that is not implemented.
        """
        try:
            encoder, decoder = config["encoder"], config["decoder"]
            for key, values in _IMPLEMENTED.items():
                if key in encoder and encoder[key] not in values:
                    raise InputError(
                        f"The encoder option {key}={encoder[key]!r} is not supported; "
                        f"only {values[-1]!r} is."
                    )
            if not isinstance(decoder["vocabulary"], list | tuple):
                raise TypeError("decoder.vocabulary is not a list of labels")
            if decoder["feat_in"] != encoder["d_model"]:
                raise ValueError("decoder.feat_in differs from encoder.d_model")
            channels = encoder.get("subsampling_conv_channels", -1)
            return cls(
                n_mels=encoder["feat_in"],
                n_layers=encoder["n_layers"],
                d_model=encoder["d_model"],
                n_heads=encoder.get("n_heads", 4),
                n_classes=len(decoder["vocabulary"]),
                subsampling_channels=encoder["d_model"] if channels == -1 else channels,
                ff_expansion=encoder.get("ff_expansion_factor", 4),
                conv_kernel=encoder.get("conv_kernel_size", 31),
                xscaling=encoder.get("xscaling", True),
                dropout=encoder.get("dropout", 0.0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The model config is not that of a Conformer ({error!r}); check model_config.yaml."
            ) from error


class Subsampling(nn.Module):
    """Two strided 3x3 convolutions over frames and mels, then a linear layer: a quarter as long."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        channels = config.subsampling_channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 2, 1),
            nn.ReLU(),
        )
        bands = math.ceil(math.ceil(config.n_mels / 2) / 2)
        self.out = nn.Linear(channels * bands, config.d_model)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, n_mels, frames) and lengths to (batch, frames / 4, d_model) and lengths."""
        x = features.transpose(1, 2).unsqueeze(1)
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d):
                x = x * valid_frames(x.shape[2], lengths)[:, None, :, None]
                lengths = (lengths - 1) // 2 + 1
            x = layer(x)
        x = x * valid_frames(x.shape[2], lengths)[:, None, :, None]
        return self.out(x.transpose(1, 2).flatten(2)), lengths


class FeedForward(nn.Module):
    """Linear, Swish, linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, channels) to the same."""
        out: Tensor = self.linear2(functional.silu(self.linear1(x)))
        return out


class Attention(nn.Module):
    """Self-attention whose scores also depend on how far apart two frames are."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(channels, channels)
        self.linear_k = nn.Linear(channels, channels)
        self.linear_v = nn.Linear(channels, channels)
        self.linear_out = nn.Linear(channels, channels)
        self.linear_pos = nn.Linear(channels, channels, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, channels // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, channels // heads))

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """Attend to the valid frames.

        Args:
            x: (batch, frames, channels).
            lengths: (batch,) int64.
            positions: (2 * frames - 1, channels), see `relative_positions`.
        """
        batch, frames, channels = x.shape
        shape = (batch, frames, self.heads, channels // self.heads)
        query = self.linear_q(x).view(shape)
        key = self.linear_k(x).view(shape).permute(0, 2, 3, 1)
        value = self.linear_v(x).view(shape).transpose(1, 2)
        position = self.linear_pos(positions).view(-1, *shape[2:]).permute(1, 2, 0)
        content = (query + self.pos_bias_u).transpose(1, 2) @ key
        distance = relative_shift((query + self.pos_bias_v).transpose(1, 2) @ position)
        scores = (content + distance) / math.sqrt(shape[3])
        valid = valid_frames(frames, lengths)[:, None, None, :]
        weights = scores.masked_fill(~valid, float("-inf")).softmax(-1)
        out: Tensor = self.linear_out((weights @ value).transpose(1, 2).reshape(x.shape))
        return out


class Convolution(nn.Module):
    """Pointwise, GLU, depthwise, BatchNorm, Swish, pointwise."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.padding = kernel // 2  # kernels are odd
        self.batch_norm = BatchNorm(channels, eps=1e-5)
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, channels) to the same."""
        x = functional.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        x = x * valid_frames(x.shape[2], lengths)[:, None]
        # Padded beforehand, as in NeMo: torch sums the taps of a padding convolution in another
        # order, and what that changes in the last bit has grown to 1e-3 at the output.
        x = self.depthwise_conv(functional.pad(x, (self.padding, self.padding)))
        x = functional.silu(self.batch_norm(x.unsqueeze(2), lengths)).squeeze(2)
        out: Tensor = self.pointwise_conv2(x).transpose(1, 2)
        return out


class ConformerLayer(nn.Module):
    """Half a feed-forward module, attention, convolution, the other half, LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        channels, hidden = config.d_model, config.d_model * config.ff_expansion
        self.norm_feed_forward1 = nn.LayerNorm(channels)
        self.feed_forward1 = FeedForward(channels, hidden)
        self.norm_self_att = nn.LayerNorm(channels)
        self.self_attn = Attention(channels, config.n_heads)
        self.norm_conv = nn.LayerNorm(channels)
        self.conv = Convolution(channels, config.conv_kernel)
        self.norm_feed_forward2 = nn.LayerNorm(channels)
        self.feed_forward2 = FeedForward(channels, hidden)
        self.norm_out = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """(batch, frames, d_model) to the same."""
        x = x + 0.5 * self.dropout(self.feed_forward1(self.norm_feed_forward1(x)))
        x = x + self.dropout(self.self_attn(self.norm_self_att(x), lengths, positions))
        x = x + self.dropout(self.conv(self.norm_conv(x), lengths))
        x = x + 0.5 * self.dropout(self.feed_forward2(self.norm_feed_forward2(x)))
        out: Tensor = self.norm_out(x)
        return out


class _Encoder(nn.Module):
    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.pre_encode = Subsampling(config)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.n_layers))


class _Decoder(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(channels, classes, 1, bias=True))


class ConformerCTC(nn.Module):
    """A Conformer acoustic model with a CTC head; the blank is the last class."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config.d_model, config.n_classes + 1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a batch.

        Args:
            features: (batch, n_mels, frames) float32, zero beyond each length.
            lengths: (batch,) int64, in frames.

        Returns:
            (batch, frames / 4, classes + 1) float32, and the lengths in output frames.
        """
        x, lengths = self.encoder.pre_encode(features, lengths)
        if self.config.xscaling:
            x = x * math.sqrt(self.config.d_model)
        positions = relative_positions(x.shape[1], self.config.d_model).to(x.device)
        for layer in self.encoder.layers:
            x = layer(x, lengths, positions)
        logits = self.decoder.decoder_layers(x.transpose(1, 2))
        return functional.log_softmax(logits.transpose(1, 2), dim=-1), lengths


def relative_positions(frames: int, channels: int) -> Tensor:
    """Sines (even channels) and cosines (odd ones) of the distances frames - 1 ... 1 - frames.

    Returns:
        (2 * frames - 1, channels) float32; the wavelengths go from 2 pi to 20000 pi.
    """
    distance = torch.arange(frames - 1, -frames, -1, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    return torch.stack([torch.sin(distance * rate), torch.cos(distance * rate)], 2).flatten(1)


def relative_shift(scores: Tensor) -> Tensor:
    """From scores by distance to scores by frame.

    Args:
        scores: (batch, heads, frames, 2 * frames - 1); column c belongs to the distance
            frames - 1 - c.

    Returns:
        (batch, heads, frames, frames): entry (i, j) is that of row i at the distance i - j.
    """
    batch, heads, frames, distances = scores.shape
    row = frames * distances
    return (
        scores.contiguous().as_strided(  # entry (i, j) lies at i * distances + frames - 1 - i + j
            (batch, heads, frames, frames), (heads * row, row, distances - 1, 1), frames - 1
        )
    )
