"""LibriSpeech (Panayotov et al., ICASSP 2015; CC BY 4.0), fetched from openslr.org."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import soundfile
from tqdm import tqdm

from zqlib.archives import extract_tar
from zqlib.corpora.download import download
from zqlib.corpora.manifest import Utterance, write_manifest
from zqlib.errors import InputError

__all__ = ["CHECKSUMS", "OFFICIAL", "fetch_librispeech"]

OFFICIAL = "https://www.openslr.org/resources/12"

# SHA-256 as torchaudio publishes them (pytorch/audio, src/torchaudio/datasets/librispeech.py);
# openslr.org itself publishes only MD5 (resources/12/md5sum.txt).
CHECKSUMS = {
    "dev-clean": "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}

_MAX_BYTES = 64 << 30  # twice the largest split
_SAMPLE_RATE_HZ = 16000


def fetch_librispeech(split: str, root: Path, base_url: str = OFFICIAL) -> Path:
    """Fetch one split and describe it in a NeMo manifest.

    The audio stays the FLAC of the archive, in `<root>/librispeech/<split>`; the archive is removed
    once it is unpacked. Every step resumes after an interruption; a split that is there is left
    alone and asks for no network.

    Args:
        split: one of `CHECKSUMS`.
        root: the folder of the corpora.
        base_url: where `<split>.tar.gz` lies; any mirror serves, the checksum is the same.

    Returns:
        The manifest `<root>/librispeech/<split>.jsonl`; transcripts in lower case.

    Raises:
        InputError: an unknown split, a failed download, or an archive that is not LibriSpeech.
    """
    if split not in CHECKSUMS:
        raise InputError(
            f"LibriSpeech has no split {split!r}; choose one of {', '.join(sorted(CHECKSUMS))}."
        )
    corpus = root / "librispeech"
    manifest = corpus / f"{split}.jsonl"
    if manifest.is_file():
        return manifest
    audio = corpus / split
    archive = corpus / f"{split}.tar.gz"
    unpacked = corpus / f"{split}.unpacked"
    if not audio.is_dir():
        if not unpacked.is_dir():
            download(f"{base_url.rstrip('/')}/{archive.name}", archive, CHECKSUMS[split])
            extract_tar(archive, unpacked, max_bytes=_MAX_BYTES)
        _take_split(unpacked / "LibriSpeech", split, audio)
    archive.unlink(missing_ok=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    write_manifest(manifest, list(tqdm(_utterances(audio), desc=split, disable=None)))
    return manifest


def _take_split(unpacked: Path, split: str, audio: Path) -> None:
    """Move the split to its place, with the licence and the notes on the speakers."""
    folder = unpacked / split
    if not folder.is_dir():
        raise InputError(
            f"The archive of {split} holds no LibriSpeech/{split}; try another mirror."
        )
    for note in unpacked.glob("*.TXT"):
        note.replace(folder / note.name)
    folder.replace(audio)


def _utterances(audio: Path) -> Iterator[Utterance]:
    recordings = set(audio.glob("*/*/*.flac"))
    for transcripts in sorted(audio.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            path = transcripts.with_name(f"{name}.flac")
            if path not in recordings:
                raise InputError(
                    f"{transcripts} names {name}, but {path} is missing; remove "
                    f"{audio} and fetch it again."
                )
            recordings.remove(path)
            yield Utterance(path, _duration_s(path), " ".join(text.lower().split()))
    if recordings:
        raise InputError(f"{min(recordings)} has no transcript; remove {audio} and fetch it again.")


def _duration_s(path: Path) -> float:
    try:
        header = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise InputError(f"{path} is not readable audio; remove it and fetch it again.") from error
    if header.samplerate != _SAMPLE_RATE_HZ or header.channels != 1:
        raise InputError(f"{path} is not 16 kHz mono, as LibriSpeech is; fetch it again.")
    return float(header.frames / header.samplerate)
