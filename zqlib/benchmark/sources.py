"""Where the model of a benchmark comes from: a checkpoint, or an architecture with random weights.

How long an engine takes does not depend on the weights, so an architecture whose checkpoint is not
at hand can be timed all the same.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from zqlib.audio import MelConfig, MelFrontEnd
from zqlib.errors import InputError
from zqlib.files import sha256_file
from zqlib.models import CTCModel, load_model
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC
from zqlib.models.layers import BatchNorm

__all__ = ["RANDOM", "Source"]

_LETTERS = tuple(" abcdefghijklmnopqrstuvwxyz'")
_N_MELS = 64


def _jasper_dr_10x5() -> tuple[BlockConfig, ...]:
    """JasperDR-10x5, 333 M parameters (Li et al. 2019, table 1)."""
    sizes = ((256, 11), (384, 13), (512, 17), (640, 21), (768, 25))
    dense = [
        BlockConfig(filters, 5, kernel, residual=True, residual_dense=True)
        for filters, kernel in sizes
        for _ in range(2)
    ]
    return (
        BlockConfig(256, 1, 11, stride=2),
        *dense,
        BlockConfig(896, 1, 29, dilation=2),
        BlockConfig(1024, 1, 1),
    )


RANDOM = {"jasper-dr-10x5": _jasper_dr_10x5}


@dataclass(frozen=True)
class Source:
    """A model to time.

    Attributes:
        path: a `.nemo` checkpoint, or None.
        random: a key of `RANDOM`, or None.
    """

    path: Path | None = None
    random: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.random is None):
            raise InputError("Give a checkpoint or --random with an architecture, one of the two.")
        if self.random is not None and self.random not in RANDOM:
            raise InputError(
                f"The architecture {self.random!r} is unknown; use {', '.join(RANDOM)}."
            )

    @property
    def name(self) -> str:
        """Of the model in the records."""
        return self.path.stem if self.path else str(self.random)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know of the weights."""
        return ("random weights",) if self.random else ()

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint, or the name of the architecture."""
        return sha256_file(self.path) if self.path else str(self.random)

    def load(self) -> CTCModel:
        """The float model.

        Raises:
            InputError: the checkpoint is bad, see `load_model`.
        """
        if self.path:
            return load_model(self.path)
        assert self.random
        network = JasperCTC(JasperConfig(_N_MELS, RANDOM[self.random](), len(_LETTERS)))
        _randomise(network)
        network.eval().requires_grad_(False)
        return CTCModel(self.name, "jasper", network, MelFrontEnd(MelConfig()), _LETTERS)


@torch.no_grad()
def _randomise(network: JasperCTC) -> None:
    """Weights that keep the scale of what passes through a ReLU (He et al. 2015), no biases."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            deviation = (2 / parameter[0].numel()) ** 0.5
            parameter.normal_(0, deviation, generator=generator)
        else:
            parameter.zero_()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.weight.fill_(1)
