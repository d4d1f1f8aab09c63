"""zqlib: integer-only zero-shot quantization of CTC speech recognisers (Q-ASR, arXiv 2103.16827).

The package is light to import: torch and friends are loaded by the modules that need them.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
