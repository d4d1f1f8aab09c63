"""What OpenVINO makes of our files."""

import pytest
import torch
from hardware import needs_exact_products
from test_onnx_qdq import FLAVOURS, NAMES, case, run, snr_db, valid

from zqlib.export.openvino import OpenVinoModel


@needs_exact_products
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_openvino_computes_what_onnx_runtime_does(name: str, flavour: str) -> None:
    given = case(name, FLAVOURS[flavour])
    model = given.qdq()
    expected, lengths = run(model, given.features, given.lengths)
    compiled = OpenVinoModel(model)
    outputs = compiled.run(
        {"audio_signal": given.features.numpy(), "length": given.lengths.numpy()}
    )
    actual = torch.from_numpy(outputs["logprobs"])
    assert outputs["output_length"].tolist() == lengths.tolist()
    assert snr_db(valid(actual, lengths), valid(expected, lengths)) > 20
    count = compiled.count_layers()
    kept = [node.name for node in model.graph.node if node.op_type == "ConvInteger"]
    assert len(kept) == (2 if (name, flavour) == ("conformer", "u8s8") else 0)
    assert len(count.float) == len(kept)  # of integers all the same, and exact
    assert len(count.integer) == given.layers - len(kept)
