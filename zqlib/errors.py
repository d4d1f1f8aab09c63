"""Errors meant for people: each message is one sentence that says what is wrong and what to do."""

__all__ = ["InputError", "LoweringError", "ZqError"]


class ZqError(Exception):
    """Base of every error that the command line prints without a traceback."""


class InputError(ZqError):
    """A file, an argument or a configuration given by the user cannot be used."""


class LoweringError(ZqError):
    """A model cannot be expressed as an integer program within its arithmetic bounds."""
