"""`zq bench`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zqlib.cli_options import Format, Quiet, check_format, needs_export, print_table

if TYPE_CHECKING:
    from zqlib.benchmark.record import BenchmarkRecord

__all__ = ["bench"]


def bench(
    model: Annotated[Path | None, typer.Argument(help="a .nemo checkpoint")] = None,
    random: Annotated[
        str | None, typer.Option(help="instead: jasper-dr-10x5, with random weights")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="engine:precision, may be repeated: torch:float32, torch:bfloat16, "
            "onnxruntime:float32, onnxruntime:int8, openvino:float32, openvino:bfloat16, "
            "openvino:int8, cpu:int8 [default: all of these]; reference:int8; on an NVIDIA GPU "
            "tensorrt:float32, tensorrt:float16, tensorrt:int8, triton:int8"
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="what ratios are formed with [default: the first engine]")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="utterances [default: 1]")] = None,
    audio_s: Annotated[
        list[float] | None, typer.Option(help="seconds of each utterance [default: 10]")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="[default: 1]")] = None,
    repeats: Annotated[int, typer.Option(help="measured runs of each engine")] = 30,
    max_s: Annotated[float, typer.Option(help="measured seconds that suffice")] = 10.0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="a folder for records, one JSON each")
    ] = None,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Time engines side by side, from features to log-probabilities or token ids."""
    check_format(format)
    compare = needs_export("benchmark.compare").compare
    from zqlib.benchmark.plan import BenchmarkPlan
    from zqlib.benchmark.record import write_benchmark
    from zqlib.benchmark.sources import Source

    systems = tuple(engine) if engine else BenchmarkPlan.systems
    plan = BenchmarkPlan(
        systems=systems,
        baseline=baseline or systems[0],
        batches=tuple(batch or (1,)),
        audio_s=tuple(audio_s or (10.0,)),
        threads=tuple(threads or (1,)),
        repeats=repeats,
        max_s=max_s,
    )
    records = []
    for case in compare(plan, Source(model, random), progress=not quiet):
        for record in case:
            records.append(record)
            if output:
                write_benchmark(output, record)
        if format == "table":
            _print_case(case)
    if format == "json":
        print(json.dumps([record.to_json() for record in records], indent=2))


def _print_case(records: "list[BenchmarkRecord]") -> None:
    first = records[0]
    print(
        f"{first.model}, batch {first.batch}, {first.audio_s:g} s, {first.threads} threads, "
        f"{first.device}; front-end excluded; ratio against {first.baseline}"
    )
    header = ("engine", "ms", "p10", "p90", "ratio", "95 % interval", "rtfx", "MB", "load ms",
              "layers")  # fmt: skip
    rows = [
        (
            f"{r.engine}:{r.precision}",
            f"{r.latency_ms:.2f}",
            f"{r.latency_p10_ms:.2f}",
            f"{r.latency_p90_ms:.2f}",
            f"{r.ratio:.2f}",
            "{:.2f}-{:.2f}".format(*r.ratio_ci95),
            f"{r.rtfx:.0f}",
            f"{r.peak_memory_mb:.0f}",
            f"{r.load_ms:.0f}",
            ", ".join(f"{count} {precision}" for precision, count in r.layers.items() if count),
        )
        for r in records
    ]
    print_table("<>>>><>>><", [header, *rows])
    for r in records:
        for reason in r.busy:
            print(f"busy ({r.engine}:{r.precision}): {reason}")
    print(flush=True)
