"""Verdicts follow from figures and records, and what is shown follows from both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from book_site import ROOT

from zqlib.book.claims import Evidence, Verdict, findings, read_evidence, read_paper, summary
from zqlib.book.headline import update_readme
from zqlib.book.pages import GENERATED, command
from zqlib.files import read_json
from zqlib.results import Record

PAPER = read_paper(ROOT)
FLOAT = Record(
    profile="full", experiment="wer", model="QuartzNet15x5Base-En", family="quartznet",
    scheme="float", calibration="none", engine="float", corpus="librispeech", split="test-other",
    utterances=2939, words=52343, audio_s=1.0, wer_pct=10.0, wer_ci95=(9.0, 11.0),
    delta_wer_pct=None, delta_ci95=None, size_mb=76.0, caveats=(), hypotheses="h.jsonl",
    device="CPU", commit="c", provenance={},
)  # fmt: skip


def int8(delta: float, low: float, high: float, **changes: object) -> Record:
    changed = {"scheme": "w8a8", "calibration": "synthetic", "engine": "reference", "size_mb": 19.5}
    return replace(
        FLOAT, delta_wer_pct=delta, delta_ci95=(low, high), **{**changed, **changes}
    )  # fmt: skip


def judge(rule: str, figure: dict[str, object], *records: Record, **others: object) -> Verdict:
    claim = {"rule": rule, "figures": [figure]}
    return summary(findings(PAPER, claim, Evidence(records, **others)))


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (int8(0.1, 0.0, 0.28), "reproduced"),
        (int8(0.1, 0.0, 0.30), "partly"),  # the interval reaches beyond
        (int8(0.1, 0.0, 0.28, caveats=("a subset",)), "partly"),
        (int8(0.30, 0.2, 0.4), "not reproduced"),
        (int8(0.1, 0.0, 0.2, model="quartznet5x5"), "not testable here"),
        (int8(0.1, 0.0, 0.2, calibration="noise"), "not testable here"),
        (int8(0.1, 0.0, 0.2, scheme="w6a8"), "not testable here"),
        (int8(0.1, 0.0, 0.2, corpus="an4"), "not testable here"),
        (int8(0.1, 0.0, 0.2, experiment="ablation"), "not testable here"),
    ],
)
def test_an_increase_is_judged_by_its_interval(record: Record, verdict: str) -> None:
    figure = {"model": "QuartzNet-15x5", "at_most": 0.29}
    assert judge("increase", figure, FLOAT, record) == verdict


def test_a_record_without_caveats_outranks_a_stand_in() -> None:
    worse = int8(2.0, 1.0, 3.0, profile="local", caveats=("re-estimated statistics",))
    figure = {"model": "QuartzNet-15x5", "at_most": 0.29}
    assert judge("increase", figure, worse, int8(0.1, 0.0, 0.2)) == "reproduced"
    assert judge("increase", figure, worse) == "not reproduced"


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [
        ([int8(0.3, 0.1, 0.5, calibration="real"), int8(4, 3, 5, calibration="noise")],
         "reproduced"),
        ([int8(0.0, -0.1, 0.1, calibration="real"), int8(4, 3, 5, calibration="noise")],
         "not reproduced"),
        ([int8(0.3, 0.1, 0.5, calibration="real"), int8(0.1, 0, 1, calibration="noise")],
         "partly"),
        ([int8(4, 3, 5, calibration="noise")], "partly"),
    ],
)  # fmt: skip
def test_synthetic_data_are_compared_with_real_data_and_noise(
    rivals: list[Record], verdict: str
) -> None:
    figure = {"model": "QuartzNet-15x5"}
    assert judge("calibration", figure, int8(0.2, 0.0, 0.4), *rivals) == verdict


@pytest.mark.parametrize(("size_mb", "verdict"), [(19.0, "reproduced"), (21.0, "partly")])
def test_a_size_may_be_five_per_cent_off(size_mb: float, verdict: str) -> None:
    figure = {"model": "QuartzNet-15x5", "times": 4}
    assert judge("size", figure, FLOAT, int8(0, 0, 0, size_mb=size_mb)) == verdict


def test_only_guarded_runs_count_as_integer_only() -> None:
    assert judge("integer-only", {}, FLOAT, int8(0, 0, 0, engine="cpu")) == "not testable here"
    assert judge("integer-only", {}, FLOAT, int8(0, 0, 0)) == "reproduced"


@pytest.mark.parametrize(
    ("device", "ratio", "verdict"),
    [
        ("NVIDIA Tesla T4", 2.4, "reproduced"),
        ("NVIDIA Tesla T4", 2.3, "not reproduced"),
        ("CPU AMD EPYC, 2 cores", 2.4, "not testable here"),
        ("NVIDIA T400", 2.4, "not testable here"),
    ],
)
def test_speed_is_judged_on_the_papers_device(device: str, ratio: float, verdict: str) -> None:
    timed = {
        "precision": "int8", "device": device, "ratio": ratio, "model": "m", "engine": "tensorrt",
        "baseline": "torch:float32",
    }  # fmt: skip
    assert judge("speed", {"device": "T4", "times": 2.35}, benchmarks=[timed]) == verdict


def test_every_claim_has_its_section() -> None:
    text = (ROOT / "book/claims.md").read_text()
    for claim in PAPER["claims"]:
        assert f"({claim['id'].lower()})=" in text and claim["id"] in GENERATED
        assert f"```{{generated}} {claim['id']}\n" in text


def test_nothing_is_claimed_before_the_first_run(tmp_path: Path) -> None:
    evidence = read_evidence(tmp_path)
    verdicts = {summary(findings(PAPER, claim, evidence)) for claim in PAPER["claims"]}
    assert verdicts == {Verdict.UNTESTABLE}


def test_the_readme_agrees_with_the_records(tmp_path: Path) -> None:
    for name in ("results", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "book").mkdir()
    (tmp_path / "book/paper.json").symlink_to(ROOT / "book/paper.json")
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    update_readme(tmp_path)
    remedy = "run `zq claims --update-readme`"
    assert readme.read_text() == (ROOT / "README.md").read_text(), remedy
    drawn = (tmp_path / "book/headline.svg").read_text()
    assert drawn == (ROOT / "book/headline.svg").read_text(), remedy


def test_the_command_names_what_the_profile_needs() -> None:
    quick = command(ROOT, "quick", "wer", {"splits": "mini-clean"})
    assert quick == "zq reproduce --profile quick --only wer -p splits=mini-clean"
    assert command(ROOT, "local", "wer").startswith("ZQ_ASSETS=")


def test_zq_claims(
    zq: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, out, _ = zq("claims")
    assert status == 0
    assert all(
        f"\n{claim['id']} " in f"\n{out}" for claim in read_json(ROOT / "book/paper.json")["claims"]
    )
    status, out, _ = zq("claims", "--format", "json")
    assert status == 0 and '"verdict": "reproduced"' in out
