"""AN4, CMU's census corpus of 1991 (Acero 1993): spelled names, numbers, dates, control words."""

import re
import shutil
from pathlib import Path

import soundfile
from tqdm import tqdm

from zqlib.archives import extract_tar
from zqlib.corpora.download import download
from zqlib.corpora.manifest import Utterance, write_manifest
from zqlib.errors import InputError

__all__ = ["CHECKSUM", "OFFICIAL", "fetch_an4", "parse_transcription"]

# NVIDIA's mirror of CMU's archive, the address in NeMo's own documentation. CMU's
# (http://www.speech.cs.cmu.edu/databases/an4) offers no encryption and no checksum.
OFFICIAL = "https://dldata-public.s3.us-east-2.amazonaws.com"

# CMU and NVIDIA publish none. This one is what a public NeMo training example of 2026 demands of
# the file at the address above (A. Salikov, Apache-2.0); no second source confirms it.
CHECKSUM = "sha256:a0525579493735d32b60fb6fa5975dd0eaacde087b0a4eeb7f13b7ef33077b12"

_ARCHIVE = "an4_sphere.tar.gz"
_MAX_BYTES = 1 << 30  # 64 MB compressed
_SAMPLE_RATE_HZ = 16000
_SPLITS = ("train", "test")
_TRANSCRIPTION = re.compile(r"(?P<words>.*)\((?P<file_id>[^()\s]+)\)")
_NOT_SPOKEN = re.compile(r"</?s>|\(\d+\)")  # sentence marks; the number of a pronunciation


def fetch_an4(root: Path, base_url: str = OFFICIAL, *, checksum: str = CHECKSUM) -> dict[str, Path]:
    """Fetch AN4, convert it from NIST SPHERE to FLAC and describe it in NeMo manifests.

    `<root>/an4` appears only when it is complete; a second call is free and asks for no network.

    Args:
        root: the folder of the corpora.
        base_url: where `an4_sphere.tar.gz` lies.
        checksum: of that archive, `algorithm:hexdigest`.

    Returns:
        The manifests of `train` (948 utterances) and `test` (130); transcripts in lower case.

    Raises:
        InputError: a failed download, an archive that is not AN4, or a foreign `<root>/an4`.
    """
    corpus = root / "an4"
    manifests = {split: corpus / f"{split}.jsonl" for split in _SPLITS}
    if all(manifest.is_file() for manifest in manifests.values()):
        return manifests
    if corpus.exists():
        raise InputError(f"{corpus} exists but lacks the manifests of AN4; move it out of the way.")
    archive = download(f"{base_url.rstrip('/')}/{_ARCHIVE}", root / _ARCHIVE, checksum)
    unpacked, converted = root / "an4.unpacked", root / "an4.converted"
    for leftover in (unpacked, converted):  # of an interrupted run; seconds of work
        shutil.rmtree(leftover, ignore_errors=True)
    extract_tar(archive, unpacked, max_bytes=_MAX_BYTES)
    for split in _SPLITS:
        utterances = _convert(unpacked / "an4", split, converted)
        write_manifest(converted / f"{split}.jsonl", utterances)
    for note in ("README", "LICENSE"):
        if (unpacked / "an4" / note).is_file():
            (unpacked / "an4" / note).replace(converted / note)
    converted.replace(corpus)
    shutil.rmtree(unpacked)
    archive.unlink()
    return manifests


def parse_transcription(line: str) -> tuple[str, str]:
    """Split `<s> ENTER SIX(2) </s> (an87-fbbh-b)` into the file's name and `enter six`.

    Raises:
        InputError: the line does not end with a file's name in parentheses, or holds no word.
    """
    match = _TRANSCRIPTION.fullmatch(line.strip())
    words = _NOT_SPOKEN.sub(" ", match["words"].lower()).split() if match else []
    if match is None or not words:
        raise InputError(f"The AN4 transcription {line!r} is not of the form 'WORDS (file)'.")
    return match["file_id"], " ".join(words)


def _convert(corpus: Path, split: str, destination: Path) -> list[Utterance]:
    """Convert one split of the unpacked archive, in the order of its list of files."""
    transcriptions = dict(
        parse_transcription(line) for line in _lines(corpus / "etc" / f"an4_{split}.transcription")
    )
    utterances = []
    for file_id in tqdm(
        _lines(corpus / "etc" / f"an4_{split}.fileids"), desc=f"an4 {split}", disable=None
    ):
        source = corpus / "wav" / f"{file_id}.sph"
        if source.stem not in transcriptions:
            raise InputError(f"The AN4 archive has no transcription of {file_id}; fetch it again.")
        target = destination / split / source.parent.name / f"{source.stem}.flac"
        duration_s = _to_flac(source, target)
        utterances.append(Utterance(target, duration_s, transcriptions[source.stem]))
    return utterances


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The AN4 archive has no readable etc/{path.name}; try another mirror."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _to_flac(source: Path, target: Path) -> float:
    """Copy the samples of a SPHERE file, exactly; returns the duration in seconds."""
    try:
        samples, rate_hz = soundfile.read(source, dtype="int16", always_2d=True)
    except soundfile.SoundFileError as error:
        raise InputError(
            f"{source.name} of the AN4 archive is missing or not readable audio; fetch it again."
        ) from error
    if rate_hz != _SAMPLE_RATE_HZ or samples.shape[1] != 1 or len(samples) == 0:
        raise InputError(f"{source.name} of the AN4 archive is not 16 kHz mono; fetch it again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return float(len(samples) / rate_hz)
