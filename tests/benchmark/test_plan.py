"""What may be compared, and the refusal of everything else."""

from typing import Any

import pytest

from zqlib.benchmark.plan import BenchmarkPlan, Case, System, parse_system
from zqlib.errors import InputError


def test_a_system_is_written_as_it_is_read() -> None:
    assert parse_system("openvino:bfloat16") == System("openvino", "bfloat16")
    assert str(System("cpu", "int8")) == "cpu:int8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tflite:int8",
            "'tflite' is unknown; use torch, torch-cuda, torch-compile, onnxruntime, openvino",
        ),
        ("cpu:float32", "use cpu:int8"),
        ("openvino", "use openvino:float32 or openvino:bfloat16 or openvino:int8"),
        ("torch:int8", "use torch:float32 or torch:bfloat16"),
        ("tensorrt:bfloat16", "use tensorrt:float32 or tensorrt:float16 or tensorrt:int8"),
        ("triton:float16", "use triton:int8"),
        ("torch-cuda:int8", "use torch-cuda:float32 or torch-cuda:tf32"),
        ("", "'' is unknown"),
    ],
)
def test_what_cannot_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_system(text)
    with pytest.raises(InputError, match=message):
        BenchmarkPlan(systems=("cpu:int8", text), baseline="cpu:int8")


def test_every_combination_is_a_case() -> None:
    plan = BenchmarkPlan(batches=(1, 8), audio_s=(2, 10.0), threads=(1, 2))
    assert len(plan.cases) == len({*plan.cases}) == 8
    assert plan.cases[0] == Case(1, 2.0, 1) and plan.cases[-1] == Case(8, 10.0, 2)


def test_a_plan_survives_json() -> None:
    plan = BenchmarkPlan(systems=("cpu:int8",), baseline="cpu:int8", random=("jasper-dr-10x5",))
    value = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.to_json().items()}
    assert BenchmarkPlan.from_json(value) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "reference:int8"}, "'reference:int8' is not among the engines"),
        ({"systems": []}, "needs systems"),
        ({"threads": [1, 1]}, "needs threads, each named once"),
        ({"threads": [0]}, "at least 1"),
        ({"batches": [1.5]}, "at least 1"),
        ({"repeats": True}, "at least 1"),
        ({"audio_s": [0]}, "0.1 to 600"),
        ({"audio_s": 10}, "needs audio_s"),
        ({"max_s": "x"}, "0.1 to 600"),
        ({"engines": []}, "unknown key 'engines'"),
    ],
)
def test_a_bad_plan_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchmarkPlan.from_json(changes)


def test_a_plan_is_an_object() -> None:
    with pytest.raises(InputError, match="JSON object"):
        BenchmarkPlan.from_json([])
