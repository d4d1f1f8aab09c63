"""QuartzNet and Jasper (the NeMo `ConvASREncoder` + `ConvASRDecoder`) in plain torch.

Module names follow NeMo's, so that state-dict keys are NeMo's own. Inside the network a tensor is
laid out as `zqlib.models.layers` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zqlib.errors import InputError
from zqlib.models.layers import BatchNorm, masked_conv

__all__ = [
    "BlockConfig",
    "JasperBlock",
    "JasperConfig",
    "JasperCTC",
    "MaskedConv",
    "ResidualBranch",
]

_BATCH_NORM_EPS = 1e-3
_MAX_SIZE = 1 << 14  # far above any published model; bounds what a hostile config can ask for


@dataclass(frozen=True)
class BlockConfig:
    """One Jasper block: `repeat` convolutions of `kernel` taps, and its residual connections."""

    filters: int
    repeat: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0
    residual: bool = False
    residual_dense: bool = False
    separable: bool = False

    def __post_init__(self) -> None:
        sizes = (self.filters, self.repeat, self.kernel, self.stride, self.dilation)
        switches = (self.residual, self.residual_dense, self.separable)
        if any(type(n) is not int for n in sizes) or any(type(s) is not bool for s in switches):
            raise TypeError("a size is not an integer or a switch neither true nor false")
        if not 0 <= self.dropout < 1:
            raise InputError("A Jasper block has a dropout outside [0, 1); check the model config.")
        if min(sizes) < 1 or max(sizes) > _MAX_SIZE:
            raise InputError(
                f"A Jasper block has a size outside 1 to {_MAX_SIZE} ({self}); check the model "
                "config."
            )
        if self.stride > 1 and self.dilation > 1:
            raise InputError("A Jasper block cannot be both strided and dilated; choose one.")
        if self.kernel % 2 == 0:
            raise InputError(
                f"A Jasper block has an even kernel of {self.kernel} taps, which 'same' padding "
                "cannot centre; make it odd."
            )

    @classmethod
    def from_nemo(cls, block: Mapping[str, Any]) -> "BlockConfig":
        """Read one entry of `encoder.jasper`; an option that is not implemented is refused."""
        ignored = {  # options that may be written out, with the only value that is implemented
            "groups": 1,
            "heads": -1,
            "residual_mode": "add",
            "se": False,
            "kernel_size_factor": 1.0,
            "stride_last": False,
            "future_context": -1,
        }
        squeeze = {"se_reduction_ratio", "se_context_size", "se_interpolation_mode"}
        fields = dict(block)
        for key, value in ignored.items():
            if fields.pop(key, value) != value:
                raise InputError(
                    f"The encoder option {key}={block[key]!r} is not supported; only {value!r} is."
                )
        for key in squeeze:  # parameters of an option that is off
            fields.pop(key, None)
        for key in ("kernel", "stride", "dilation"):
            if isinstance(fields.get(key), Sequence) and len(fields[key]) == 1:
                fields[key] = fields[key][0]
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(
                f"The encoder block {dict(block)} is malformed ({error}); check model_config.yaml."
            ) from error


@dataclass(frozen=True)
class JasperConfig:
    """A whole network: mel bands in, Jasper blocks, classes out (the CTC blank excluded)."""

    n_mels: int
    blocks: tuple[BlockConfig, ...]
    n_classes: int

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any]) -> "JasperConfig":
        """Read a NeMo `model_config.yaml` of an `EncDecCTCModel`.

        Raises:
            InputError: a section is missing, or asks for an option that is not implemented.
        """
        try:
            encoder, decoder = config["encoder"], config["decoder"]
            options = {
                "activation": "relu",
                "conv_mask": True,
                "normalization_mode": "batch",
                "residual_mode": "add",
                "frame_splicing": 1,
                "norm_groups": -1,
            }
            for key, value in options.items():
                if encoder.get(key, value) != value:
                    raise InputError(
                        f"The encoder option {key}={encoder[key]!r} is not supported; "
                        f"only {value!r} is."
                    )
            blocks = tuple(BlockConfig.from_nemo(block) for block in encoder["jasper"])
            n_classes = len(decoder["vocabulary"])
            if not isinstance(encoder["jasper"], list | tuple):
                raise TypeError("encoder.jasper is not a list of blocks")
            if not isinstance(decoder["vocabulary"], list | tuple):
                raise TypeError("decoder.vocabulary is not a list of labels")
            if not blocks or n_classes == 0:
                raise ValueError("no encoder block or no vocabulary")
            if decoder["feat_in"] != blocks[-1].filters:
                raise ValueError("decoder.feat_in differs from the filters of the last block")
            if not 1 <= encoder["feat_in"] <= _MAX_SIZE:
                raise ValueError(f"encoder.feat_in is outside 1 to {_MAX_SIZE}")
            return cls(int(encoder["feat_in"]), blocks, n_classes)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(
                f"The model config is not that of a QuartzNet or Jasper ({error!r}); "
                "check model_config.yaml."
            ) from error


class MaskedConv(nn.Module):
    """The parameters of a `masked_conv` with NeMo's "same" padding."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int,
        groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        padding = dilation * (kernel - 1) // 2  # kernels are odd
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
        )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, 1, frames) and lengths (batch,) to the same, strided."""
        conv = self.conv
        return masked_conv(
            x, lengths, conv.weight, None,
            conv.stride[0], int(conv.padding[0]), conv.dilation[0], conv.groups,
        )  # fmt: skip


class ResidualBranch(nn.Sequential):
    """A 1x1 convolution and its BatchNorm, numbered 0 and 1 in the state dict as in NeMo."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            MaskedConv(in_channels, out_channels, 1, 1, 1), BatchNorm(out_channels, _BATCH_NORM_EPS)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, channels, 1, frames) and lengths (batch,) to the branch's summand."""
        conv, norm = self
        out: Tensor = norm(*conv(x, lengths))
        return out


class JasperBlock(nn.Module):
    """(conv, BatchNorm, ReLU, dropout) x repeat, plus 1x1 conv-BatchNorm residual branches.

    The sum of the branches comes before the last ReLU. A dense residual (JasperDR) has one branch
    from the input of every dense block so far.
    """

    def __init__(self, config: BlockConfig, in_channels: int, residual_panes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for repetition in range(config.repeat):
            if repetition > 0:
                layers += [nn.ReLU(), nn.Dropout(config.dropout)]
            conv = (config.kernel, config.stride, config.dilation)
            if config.separable:
                layers.append(MaskedConv(channels, channels, *conv, groups=channels))
                layers.append(MaskedConv(channels, config.filters, 1, 1, 1))
            else:
                layers.append(MaskedConv(channels, config.filters, *conv))
            layers.append(BatchNorm(config.filters, _BATCH_NORM_EPS))
            channels = config.filters
        self.mconv = nn.ModuleList(layers)
        self.res = nn.ModuleList()
        if config.residual:
            panes = residual_panes or [in_channels]
            self.res.extend(ResidualBranch(pane, config.filters) for pane in panes)
        self.dense_residual = config.residual and bool(residual_panes)
        self.mout = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))

    def forward(self, panes: list[Tensor], lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """`panes` are the inputs of the dense blocks so far; the last one is this block's."""
        out, out_lengths = panes[-1], lengths
        for layer in self.mconv:
            if isinstance(layer, MaskedConv):
                out, out_lengths = layer(out, out_lengths)
            elif isinstance(layer, BatchNorm):
                out = layer(out, out_lengths)
            else:
                out = layer(out)
        for pane, branch in zip(panes, self.res, strict=False):
            out = out + branch(pane, lengths)
        out = self.mout(out)
        return ([*panes, out] if self.dense_residual else [out]), out_lengths


class _Encoder(nn.Module):
    def __init__(self, config: JasperConfig) -> None:
        super().__init__()
        blocks = []
        channels, panes = config.n_mels, list[int]()
        for block in config.blocks:
            if block.residual_dense:
                panes.append(channels)
            blocks.append(JasperBlock(block, channels, panes if block.residual_dense else []))
            channels = block.filters
        self.encoder = nn.ModuleList(blocks)


class _Decoder(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(channels, classes, 1, bias=True))


class JasperCTC(nn.Module):
    """A QuartzNet or Jasper acoustic model with a CTC head; the blank is the last class."""

    def __init__(self, config: JasperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config.blocks[-1].filters, config.n_classes + 1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a batch.

        Args:
            features: (batch, n_mels, frames) float32, zero beyond each length.
            lengths: (batch,) int64, in frames.

        Returns:
            (batch, frames / stride, classes + 1) float32, and the lengths in output frames.
        """
        panes = [features.unsqueeze(2).contiguous(memory_format=torch.channels_last)]
        for block in self.encoder.encoder:
            panes, lengths = block(panes, lengths)
        logits = self.decoder.decoder_layers(panes[-1].squeeze(2))
        return functional.log_softmax(logits.transpose(1, 2), dim=-1), lengths
