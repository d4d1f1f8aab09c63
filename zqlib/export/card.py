"""What stands beside an exported model, and in its metadata: for people and for runtimes."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto

from zqlib.audio import MelConfig
from zqlib.quantization.scheme import QuantScheme

__all__ = ["Description", "model_card", "subsampling_factor", "tokens_file"]


@dataclass(frozen=True)
class Description:
    """An exported model.

    Attributes:
        name, family: of the checkpoint.
        contents: what the file computes with, for people.
        labels: the text of each class; the blank comes after the last.
        mel: of the front-end, which is not in the file.
        subsampling: frames of features per frame of output.
        scheme, calibration: how it was quantized; None for a float model.
        input_scale: real value of one step of the features, where the model reads integers.
        frame_agreement_pct: see `zqlib.quantized_model.frame_agreement_pct`, on the calibration
            features; None where there were none.
    """

    name: str
    family: str
    contents: str
    labels: tuple[str, ...]
    mel: MelConfig
    subsampling: int
    scheme: QuantScheme | None = None
    calibration: dict[str, Any] | None = None
    input_scale: float | None = None
    frame_agreement_pct: float | None = None

    def metadata(self) -> dict[str, str]:
        """Text by key for `metadata_props`; the first five are what sherpa-onnx reads."""
        values = {
            "vocab_size": str(len(self.labels)),
            "normalize_type": "per_feature",
            "subsampling_factor": str(self.subsampling),
            "model_type": "EncDecCTCModelBPE",
            "version": "1",
            "comment": f"{self.family} {self.name} by zqlib: {self.contents}",
            "zqlib.labels": json.dumps(self.labels, ensure_ascii=False),
            "zqlib.mel": json.dumps(asdict(self.mel), sort_keys=True),
        }
        if self.scheme:
            values["zqlib.scheme"] = json.dumps(self.scheme.to_json(), sort_keys=True)
            values["zqlib.calibration"] = json.dumps(self.calibration, sort_keys=True)
        if self.input_scale is not None:
            values["zqlib.input_scale"] = repr(self.input_scale)
        return values


def subsampling_factor(operators: Iterable[object]) -> int:
    """Frames of features per frame of output: the strides of all convolutions together."""
    return math.prod(getattr(operator, "stride", 1) for operator in operators)


def tokens_file(labels: tuple[str, ...]) -> str:
    """One `token id` a line, the blank last: what sherpa-onnx and onnx-asr read.

    A space is written as sentencepiece's U+2581, which both read as a space.
    """
    tokens = [label.replace(" ", "\u2581") for label in labels] + ["<blk>"]
    return "".join(f"{token} {index}\n" for index, token in enumerate(tokens))


def model_card(
    file: str, tokens: str, description: Description, model: onnx.ModelProto, made: str
) -> str:
    """The model card, in Markdown.

    Args:
        file, tokens: names of the model's file and of its tokens.
        description: of the model.
        model: the model.
        made: size and format of the file.
    """
    mel = description.mel
    frame_ms = 1000 * mel.window_stride_s * description.subsampling
    lines = [
        f"# {description.name}, {description.family}: {description.contents}",
        "",
        f"`{file}`, {made}, written by zqlib.",
        "",
        "| | name | type | shape |",
        "|---|---|---|---|",
        *(_row("input", value) for value in model.graph.input),
        *(_row("output", value) for value in model.graph.output),
        "",
        f"- **Frame rate**: one frame of output every {frame_ms:g} ms "
        f"({description.subsampling} frames of features).",
        f"- **Front-end** (not in the file): {mel.sample_rate} Hz, {mel.n_mels} log-mel bands, "
        f"window {1000 * mel.window_size_s:g} ms, hop {1000 * mel.window_stride_s:g} ms, FFT "
        f"{mel.n_fft}, Hann, pre-emphasis 0.97, each band normalised over the utterance; "
        "`length` counts the frames that are not padding.",
        f"- **Tokens**: {len(description.labels)} in `{tokens}` and the blank, "
        f"id {len(description.labels)}; greedy CTC merges repeats, then drops blanks.",
    ]
    if description.input_scale is not None:
        lines.append(
            f"- **Features** are integers: `clip(round(x / {description.input_scale!r}))`, rounded "
            "half to even, within the range of the scheme's activation bits."
        )
    if description.scheme:
        scheme = json.dumps(description.scheme.to_json(), sort_keys=True)
        calibration = json.dumps(description.calibration, sort_keys=True)
        lines += [
            f"- **Scheme**: {description.scheme.name}, `{scheme}`.",
            f"- **Calibration**: {(description.calibration or {}).get('kind')}, `{calibration}`.",
        ]
    kept = sum(node.op_type == "ConvInteger" for node in model.graph.node)
    if kept and description.input_scale is None:
        lines.append(
            f"- **Not Q/DQ**: {kept} depthwise convolutions, whose sums would lose too much in 8 "
            "bits. They are `ConvInteger`: integers in ONNX Runtime, floats in OpenVINO."
        )
    if description.frame_agreement_pct is not None:
        lines.append(
            "- **Expected error**: the integer program of this calibration gives "
            f"{description.frame_agreement_pct:.2f} % of the calibration's frames the token of the "
            "float model. No speech was heard; `zq compare` measures on yours."
        )
    if description.input_scale is None and file.endswith(".onnx"):
        lines += ["", *_usage(file, tokens, mel)]
    return "\n".join(lines) + "\n"


def _row(kind: str, value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = ", ".join(axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim)
    return (
        f"| {kind} | `{value.name}` | {TensorProto.DataType.Name(tensor.elem_type)} | ({shape}) |"
    )


def _usage(file: str, tokens: str, mel: MelConfig) -> list[str]:
    return [
        "[sherpa-onnx](https://github.com/k2-fsa/sherpa-onnx) has a front-end of its own that is "
        "close to this one:",
        "",
        "```python",
        "import sherpa_onnx",
        "recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(",
        f'    model="{file}", tokens="{tokens}", feature_dim={mel.n_mels}',
        ")",
        "```",
    ]
