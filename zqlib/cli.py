"""`zq`: the command line. Heavy modules are imported by the commands that need them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from safetensors import SafetensorError

from zqlib.cli_bench import bench
from zqlib.cli_export import compare, export
from zqlib.cli_options import (
    Batches,
    Bits,
    Calibration,
    Device,
    Format,
    Manifest,
    Quiet,
    Ranges,
    Scheme,
    Seed,
    Steps,
    Synthesis,
    Weights,
    calibrated,
    check_format,
    print_table,
)
from zqlib.errors import InputError, ZqError

if TYPE_CHECKING:
    from zqlib.results import Record

__all__ = ["app", "main"]

_LONGEST = 400
_INTERRUPTED = 130  # what typer returns after Ctrl-C

app = typer.Typer(
    help="Integer-only zero-shot quantization of CTC speech recognisers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Engine = Annotated[
    str | None,
    typer.Option(help="reference, cpu or triton, for a .zq program [default: reference]"),
]
Threads = Annotated[
    int | None, typer.Option(help="of the engine cpu [default: as many as torch uses]")
]


app.command(epilog="Example: zq export quartznet.nemo --to onnx -o quartznet.onnx")(export)
app.command(epilog="Example: zq compare quartznet.nemo test-other.jsonl")(compare)
app.command(epilog="Example: zq bench quartznet.nemo --threads 1 --threads 2 -o bench")(bench)


def main() -> None:
    """Run `zq`; an error becomes one sentence on stderr: status 1, or 2 for wrong usage."""
    try:
        # not standalone: typer would use several lines for its own errors
        status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _exit(f"{error.format_message().rstrip('.')}; try `zq --help`.", error.exit_code)
    except ZqError as error:
        _exit(str(error), 1)
    except (OSError, SafetensorError) as error:
        reason = str(error)[:_LONGEST]  # a path may have thousands of letters
        _exit(f"The system refused to read or write ({reason}); check paths and disk space.", 1)
    if status == _INTERRUPTED:
        _exit("interrupted; what quantize, reproduce and train had done is kept.", _INTERRUPTED)
    sys.exit(status)


def _exit(message: str, status: int) -> NoReturn:
    print(f"zq: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


@app.command(epilog="Example: zq quantize QuartzNet15x5Base-En.nemo -o quartznet.zq --bits 8")
def quantize(
    model: Annotated[
        Path, typer.Argument(help="a .nemo checkpoint (QuartzNet, Jasper or Conformer)")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the .zq file to write")],
    bits: Bits = None,
    scheme: Scheme = None,
    ranges: Ranges = None,
    weights: Weights = None,
    calibration: Calibration = "synthetic",
    manifest: Manifest = None,
    synthesis: Synthesis = "reduced",
    steps: Steps = None,
    batches: Batches = None,
    seed: Seed = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Turn a float checkpoint into an integer-only model, without any data."""
    from zqlib import quantized_model

    if output.suffix != ".zq":
        raise InputError(f"The output {output} must end in .zq.")
    given = calibrated(
        model, bits=bits, scheme=scheme, ranges=ranges, weights=weights, calibration=calibration,
        manifest=manifest, synthesis=synthesis, steps=steps, batches=batches, seed=seed,
        quiet=quiet, device=device,
    )  # fmt: skip
    quantized = quantized_model.quantize(
        given.model, given.batches, given.scheme, given.description, not quiet
    )
    quantized.save(output)
    size_mb = output.stat().st_size / 1e6
    used = given.scheme
    corrected = ", biases corrected" if used.bias_correction else ""
    tuned = ", blocks reconstructed" if used.block_reconstruction else ""
    gpu = f" on {given.description['device']}" if "device" in given.description else ""
    print(
        f"{output}: {quantized.family} {quantized.name}, {used.name}, {calibration} "
        f"calibration{gpu} ({used.range_method} ranges; {used.weight_rounding} weights, "
        f"{used.weight_range_method} steps{corrected}{tuned}), "
        f"{size_mb:.2f} MB ({given.model.size_mb / size_mb:.2f}x smaller than float32)"
    )
    if quantized.scheme.layer_bits:
        average, rows = quantized_model.weight_widths(quantized.program)
        print(f"{average:.2f} bits a weight on average, chosen by layer:")
        header = ["bits", "layers", "depthwise", "weights"]
        print_table(">>>>", [header, *([f"{value:,}" for value in row] for row in rows)])


@app.command(epilog="Example: zq transcribe quartznet.zq speech.flac more.wav")
def transcribe(
    model: Annotated[Path, typer.Argument(help="a .zq program or a .nemo checkpoint")],
    audio: Annotated[list[Path], typer.Argument(help="FLAC or WAV files, mono")],
    batch_size: Annotated[int, typer.Option(help="files that run together")] = 1,
    resample: Annotated[bool, typer.Option(help="convert other sample rates")] = False,
    engine: Engine = None,
    threads: Threads = None,
    format: Format = "table",
) -> None:
    """Print what is said in audio files."""
    from zqlib import recognition

    check_format(format)
    recogniser = recognition.load_recogniser(model, engine, threads)
    texts = recognition.transcribe(recogniser, audio, batch_size=batch_size, resample=resample)
    if format == "json":
        rows = [{"audio": str(p), "text": t} for p, t in zip(audio, texts, strict=True)]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for path, text in zip(audio, texts, strict=True):
        print(text if len(audio) == 1 else f"{path}: {text}", flush=True)


@app.command(epilog="Example: zq evaluate quartznet.zq test-other.jsonl --baseline quartznet.nemo")
def evaluate(
    model: Annotated[Path, typer.Argument(help="a .zq program or a .nemo checkpoint")],
    manifest: Annotated[Path, typer.Argument(help="a NeMo JSONL manifest with transcripts")],
    baseline: Annotated[
        Path | None, typer.Option(help="another model to compare with, on the same utterances")
    ] = None,
    hypotheses: Annotated[
        Path | None, typer.Option(help="store what was recognised in this JSONL file")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="utterances that run together")] = 1,
    engine: Engine = None,
    threads: Threads = None,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Word error rate on a manifest, with a 95 % bootstrap interval."""
    from zqlib import evaluation, recognition

    check_format(format)
    recognisers = [recognition.load_recogniser(model, engine, threads)]
    if baseline:
        recognisers.append(recognition.load_recogniser(baseline))
    heard = [
        recognition.recognise_manifest(
            recogniser, manifest, batch_size=batch_size, progress=not quiet
        )
        for recogniser in recognisers
    ]
    if hypotheses:
        evaluation.write_hypotheses(hypotheses, heard[0])
    score = evaluation.word_error_rate(heard[0])
    result: dict[str, Any] = {
        "model": str(model), "engine": recognisers[0].engine, "manifest": str(manifest),
        "utterances": score.utterances, "words": score.words,
        "wer_pct": score.wer_pct, "wer_ci95": score.ci95,
    }  # fmt: skip
    if baseline:
        delta = evaluation.paired_difference(heard[1], heard[0])
        result |= {
            "baseline": str(baseline),
            "baseline_wer_pct": evaluation.word_error_rate(heard[1]).wer_pct,
            "delta_wer_pct": delta.delta_wer_pct,
            "delta_ci95": delta.ci95,
        }
    if format == "json":
        print(json.dumps(result, indent=2))
        return
    print(
        f"{model} ({result['engine']}): WER {score.wer_pct:.2f} % "
        f"[{score.ci95[0]:.2f}, {score.ci95[1]:.2f}] "
        f"on {score.utterances} utterances, {score.words} words"
    )
    if baseline:
        low, high = result["delta_ci95"]
        print(
            f"against {baseline}: {result['baseline_wer_pct']:.2f} %, "
            f"difference {result['delta_wer_pct']:+.2f} points [{low:+.2f}, {high:+.2f}]"
        )


@app.command(epilog="Example: zq reproduce --profile quick --only wer -p splits=mini-clean")
def reproduce(
    profile: Annotated[str, typer.Option(help="a file in workflow/profiles")] = "quick",
    only: Annotated[
        str | None,
        typer.Option(help="one notebook: synthesis, wer, layers, ablation, budget, exports ..."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="a notebook to leave as it is; may be repeated")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value for the notebooks; lists by commas"),
    ] = None,
    force: Annotated[bool, typer.Option(help="run although nothing changed")] = False,
    on: Annotated[
        str | None, typer.Option(help="slurm or kubernetes (workflow/) [default: this machine]")
    ] = None,
    shards: Annotated[int, typer.Option(help="parts that every evaluation is cut into")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the jobs")] = False,
) -> None:
    """Run the experiments of a profile; what is done and unchanged is not run again."""
    from zqlib.parameters import parse_parameters
    from zqlib.reproduce import reproduce as run

    values = parse_parameters(parameter or [])
    pages = run(
        Path("."), profile, only, values, force,
        without=without or (), on=on, shards=shards, dry_run=dry_run,
    )  # fmt: skip
    for path in pages:
        print(path)


@app.command(epilog="Example: zq status --profile local")
def status(
    profile: Annotated[str | None, typer.Option(help="only this profile")] = None,
    format: Format = "table",
) -> None:
    """Tell of every page whether it is what a run would give, and why not."""
    from zqlib import freshness
    from zqlib.profiles import profile_names

    check_format(format)
    root = Path(".")
    found = {
        (name, notebook): state
        for name in ([profile] if profile else profile_names(root))
        for notebook, state in freshness.statuses(root, name).items()
    }
    if format == "json":
        rows = [{"profile": p, "notebook": n, **vars(s)} for (p, n), s in found.items()]
        print(json.dumps(rows, indent=2))
        return
    for (name, notebook), state in found.items():
        print(f"{name}  {notebook}  {state}")


@app.command(epilog="Example: zq results --profile local --format json")
def results(
    profile: Annotated[str | None, typer.Option(help="only this profile")] = None,
    folder: Annotated[Path, typer.Option(help="where the records are")] = Path("results"),
    format: Format = "table",
) -> None:
    """Show the records that runs have left."""
    from zqlib.results import read_records

    check_format(format)
    records = read_records(folder, profile)
    if format == "json":
        print(json.dumps([record.to_json() for record in records], indent=2))
    else:
        _print_table(records)


@app.command(epilog="Example: zq claims --format json")
def claims(
    format: Format = "table",
    update_readme: Annotated[
        bool, typer.Option(help="write the tables and the picture of README.md anew")
    ] = False,
) -> None:
    """Compare the paper's claims with the records of this checkout."""
    from zqlib.book import claims, headline

    check_format(format)
    root = Path(".")
    paper, evidence = claims.read_paper(root), claims.read_evidence(root)
    found = {c["id"]: claims.findings(paper, c, evidence) for c in paper["claims"]}
    if update_readme:
        headline.update_readme(root)
    if format == "json":
        rows = [
            {"claim": name, **{key: value for key, value in vars(f).items() if key != "record"}}
            for name, findings in found.items()
            for f in findings
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for claim in paper["claims"]:
        print(f"{claim['id']} {claims.summary(found[claim['id']])}: {claim['claim']}")
        for f in found[claim["id"]]:
            print("   ", "; ".join(filter(None, [f.what, f.paper, f.ours, f.verdict, f.why])))


@app.command(epilog="Example: zq corpus mini data/mini --split mini-clean")
def corpus(
    name: Annotated[str, typer.Argument(help="mini, librispeech or an4")],
    folder: Annotated[Path, typer.Argument(help="where to put it")],
    split: Annotated[
        list[str] | None, typer.Option(help="which splits; default: the test splits")
    ] = None,
) -> None:
    """Build the mini corpus, or fetch LibriSpeech or AN4 from their official addresses."""
    from zqlib.corpora.get import get_corpus

    for manifest in get_corpus(name, folder, split).values():
        print(manifest)


@app.command(epilog="Example: zq train mini-quartznet.nemo --work-dir work/training")
def train(
    output: Annotated[Path, typer.Argument(help="the .nemo to write")],
    work_dir: Annotated[Path, typer.Option(help="corpus and checkpoints, to resume from")],
    an4: Annotated[
        Path | None, typer.Option(help="a folder with AN4's train.jsonl and test.jsonl")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="a JSON file of training settings, or a training record")
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="the .nemo of an earlier round to start from")
    ] = None,
) -> None:
    """Train a mini model: the QuartzNet, or one of a record in zqlib/checkpoints (--config)."""
    from zqlib.files import read_json
    from zqlib.training import TrainingConfig
    from zqlib.training import train as run

    settings = read_json(config) if config else {}
    if isinstance(settings, dict) and "checkpoint_sha256" in settings:  # a training record
        settings = settings["config"]
    record = run(
        TrainingConfig.from_json(settings),
        output,
        work_dir,
        an4_train=an4 / "train.jsonl" if an4 else None,
        an4_test=an4 / "test.jsonl" if an4 else None,
        initial=initial,
    )
    print(json.dumps(record["tests"], indent=2))


def _print_table(records: list["Record"]) -> None:
    header = ("profile", "model", "corpus", "split", "utt", "scheme", "calibration", "engine",
              "WER %", "95 % interval", "delta", "MB")  # fmt: skip
    rows = [header] + [
        (
            record.profile,
            record.model,
            record.corpus,
            record.split,
            str(record.utterances),
            record.scheme,
            record.calibration,
            record.engine,
            f"{record.wer_pct:.2f}",
            "{:.2f}-{:.2f}".format(*record.wer_ci95),
            "" if record.delta_wer_pct is None else f"{record.delta_wer_pct:+.2f}",
            f"{record.size_mb:.2f}",
        )
        for record in records
    ]
    print_table("<<<<><<<><>>", rows)
    for caveat in sorted({caveat for record in records for caveat in record.caveats}):
        print(f"note: {caveat}")
