"""Training of the mini models that the quick profile quantizes (`zq train`)."""

from zqlib.training.config import TrainingConfig
from zqlib.training.loop import train

__all__ = ["TrainingConfig", "train"]
