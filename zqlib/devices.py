"""Where a network's data are synthesized and its weights rounded: the CPU, or an NVIDIA GPU."""

import torch
from torch import nn

from zqlib.errors import InputError

__all__ = ["choose_device", "device_of"]


def choose_device(name: str) -> torch.device:
    """A device by name; of a GPU, convolutions in float32 are kept from being rounded to TF32.

    Raises:
        InputError: the name is unknown, or torch sees no such device.
    """
    if name not in ("cpu", "cuda"):
        raise InputError(f"The device {name!r} is unknown; use cpu or cuda.")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                "torch sees no CUDA GPU here; leave out what asks for cuda, or install a torch "
                "built for CUDA."
            )
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
