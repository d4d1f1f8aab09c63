"""Pretrained CTC acoustic models, read from `.nemo` archives without importing NeMo."""

from dataclasses import dataclass
from pathlib import Path

import torch

from zqlib.audio import MelConfig, MelFrontEnd
from zqlib.errors import InputError
from zqlib.models.conformer import ConformerConfig, ConformerCTC
from zqlib.models.jasper import JasperConfig, JasperCTC
from zqlib.models.nemo import load_state, read_nemo

__all__ = ["CTCModel", "Network", "load_model"]

Network = JasperCTC | ConformerCTC


@dataclass(frozen=True)
class CTCModel:
    """A pretrained float model and what is needed to use it.

    Attributes:
        name: the archive's file name without its suffix.
        family: `quartznet`, `jasper` or `conformer`.
        network: (features, lengths) -> (log-probabilities, lengths), in evaluation mode.
        front_end: waveform -> features, as the model was trained with.
        labels: the text of each class; the blank is the class after the last label.
    """

    name: str
    family: str
    network: Network
    front_end: MelFrontEnd
    labels: tuple[str, ...]

    @property
    def size_mb(self) -> float:
        """4 bytes per stored value, in 10^6 bytes."""
        values: int = sum(tensor.numel() for tensor in self.network.state_dict().values())
        return 4e-6 * values


def load_model(path: Path) -> CTCModel:
    """Build the model that a `.nemo` archive describes and load its weights.

    Raises:
        InputError: the archive cannot be read (see `read_nemo`), its model is of a family that is
            not supported, its config is malformed, or its weights do not fit its config.
    """
    archive = read_nemo(path)
    sections = {}
    for name in ("preprocessor", "encoder", "decoder"):
        section = archive.config.get(name)
        if not isinstance(section, dict):
            raise InputError(f"The config in {path} has no section {name!r} with options.")
        # Archives of NeMo before 1.0 write {cls, params} for what became {_target_, **params}.
        if isinstance(section.get("params"), dict):
            section = {"_target_": section.get("cls"), **section["params"]}
        sections[name] = section
    target = sections["encoder"].get("_target_")
    encoders: dict[str, type[JasperConfig | ConformerConfig]] = {
        "ConvASREncoder": JasperConfig,
        "ConformerEncoder": ConformerConfig,
    }
    encoder = target.rpartition(".")[2] if isinstance(target, str) else ""
    if encoder not in encoders:
        raise InputError(
            f"{path} holds an encoder of type {target!r}; only QuartzNet and Jasper "
            "(ConvASREncoder) and Conformer (ConformerEncoder) with a CTC decoder are supported."
        )
    config = encoders[encoder].from_nemo(sections)
    mel = MelConfig.from_nemo(sections["preprocessor"])
    if mel.n_mels != config.n_mels:
        raise InputError(
            f"{path} has a preprocessor of {mel.n_mels} mels and an encoder of {config.n_mels}."
        )
    filters = archive.state.get("preprocessor.featurizer.fb")  # NeMo stores it: (1, mels, bins)
    if filters is not None:
        if filters.shape != (1, mel.n_mels, mel.n_fft // 2 + 1):
            raise InputError(f"{path} has a mel filter bank of shape {tuple(filters.shape)}.")
        if not torch.isfinite(filters).all():
            raise InputError(f"{path} has a mel filter bank with values that are not finite.")
        filters = filters[0].float()
    front_end = MelFrontEnd(mel, filters)
    with torch.device("meta"):  # no memory for sizes that only the config claims
        network = _build(config)
    load_state(network, archive.state, str(path))
    network.eval()
    network.requires_grad_(False)
    labels = tuple(str(label) for label in sections["decoder"]["vocabulary"])
    return CTCModel(path.stem, _family(config), network, front_end, labels)


def _build(config: JasperConfig | ConformerConfig) -> Network:
    return JasperCTC(config) if isinstance(config, JasperConfig) else ConformerCTC(config)


def _family(config: JasperConfig | ConformerConfig) -> str:
    if isinstance(config, ConformerConfig):
        return "conformer"
    return "quartznet" if any(block.separable for block in config.blocks) else "jasper"
