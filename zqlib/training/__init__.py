"""Training of the mini QuartzNet that the quick profile quantizes (`python -m zqlib.training`)."""

from zqlib.training.config import TrainingConfig
from zqlib.training.loop import train

__all__ = ["TrainingConfig", "train"]
