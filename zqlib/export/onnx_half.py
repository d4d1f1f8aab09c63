"""A float32 ONNX model in float16, for runtimes that take types from the file."""

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

__all__ = ["to_float16"]


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert what a model computes in, and its weights, to float16; inputs and outputs stay.

    Angles of positional encodings stay in float32: float16 counts frames one by one only up to
    2048, and an angle of hundreds of radians has no digits left for its sine.

    Args:
        model: of `zqlib.export.onnx_float`; unchanged.
    """
    writer = {name: node for node in model.graph.node for name in node.output}
    angles = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    for node in angles:  # grows by what they are computed from, up to the number of frames
        sources = (writer[name] for name in node.input if name in writer)
        angles += [s for s in sources if s.op_type != "Shape" and s not in angles]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=DEFAULT_OP_BLOCK_LIST,
        node_block_list=[node.name for node in angles],
    )
    OnnxModel.graph_topological_sort(half.graph)  # it appends its casts
    return half
