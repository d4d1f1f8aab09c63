"""What the page on exports counts and weighs."""

import torch
from tiny import lowered
from tiny_conformer import lowered_conformer

from zqlib.experiments.exports import bit_operations
from zqlib.integer.operators import Attention, Conv1d
from zqlib.quantization.scheme import QuantScheme
