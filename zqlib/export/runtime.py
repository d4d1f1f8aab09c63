"""ONNX Runtime, on the CPU."""

from pathlib import Path
from typing import Any

import onnx

from zqlib.errors import InputError

__all__ = ["open_session"]


def open_session(
    model: onnx.ModelProto | Path, threads: int = 1, optimized: Path | None = None
) -> Any:
    """Load a model into ONNX Runtime with all its optimizations.

    8-bit signed activations are allowed to run in integers, which ONNX Runtime otherwise leaves in
    float on x86, where they are slower than unsigned ones.

    Args:
        model: the model, or its file.
        threads: that compute one operator.
        optimized: where to write the graph that is executed; None for nowhere.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        InputError: ONNX Runtime is not installed, or it refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is missing; run `pip install 'zqlib[export]'`.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise InputError(f"ONNX Runtime refuses the model ({error}).") from error
