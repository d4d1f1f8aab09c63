"""One door to every corpus, by name."""

from collections.abc import Sequence
from pathlib import Path

from zqlib.errors import InputError

__all__ = ["get_corpus"]

_TEST_SPLITS = {
    "mini": ("mini-clean", "mini-other"),
    "librispeech": ("test-clean", "test-other"),
    "an4": ("test",),
}
_OTHER_SPLITS = {
    "mini": ("train",),
    "librispeech": ("dev-clean", "dev-other", "train-clean-100", "train-clean-360",
                    "train-other-500"),
    "an4": ("train",),
}  # fmt: skip


def get_corpus(name: str, folder: Path, splits: Sequence[str] | None = None) -> dict[str, Path]:
    """Build or fetch splits of a corpus; what is there already is left alone.

    Args:
        name: `mini` (built here), `librispeech` or `an4` (fetched).
        folder: where to put it.
        splits: names; None for the test splits.

    Returns:
        Manifests by split.

    Raises:
        InputError: the corpus or a split is unknown, or a download fails.
    """
    if name not in _TEST_SPLITS:
        raise InputError(f"The corpus {name!r} is unknown; use {', '.join(_TEST_SPLITS)}.")
    splits = splits or _TEST_SPLITS[name]
    known = (*_TEST_SPLITS[name], *_OTHER_SPLITS[name])
    if unknown := sorted(set(splits) - set(known)):  # before anything is fetched
        raise InputError(f"The corpus {name} has no split {unknown[0]!r}; use {', '.join(known)}.")
    if name == "mini":
        from zqlib.corpora.mini import build_mini_corpus

        return build_mini_corpus(folder, splits)
    if name == "librispeech":
        from zqlib.corpora.librispeech import fetch_librispeech

        return {split: fetch_librispeech(split, folder) for split in splits}
    from zqlib.corpora.an4 import fetch_an4

    manifests = fetch_an4(folder)
    return {split: manifests[split] for split in splits}
