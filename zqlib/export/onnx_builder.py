"""Builds an ONNX graph node by node."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

__all__ = ["IR_VERSION", "GraphBuilder", "Value"]

IR_VERSION = 8  # the first one with functions; read by every ONNX Runtime since 1.12

Value = tuple[str, int, Sequence[str | int]]
"""An input or output of a graph: name, element type of `TensorProto`, shape (a name is dynamic)."""


class GraphBuilder:
    """Nodes and initializers in order of execution, every name given once.

    An initializer is never shared: where two layers had the same bias, ONNX Runtime would leave
    both in float.

    Args:
        reserved: names of inputs and outputs, which nothing inside may take.
    """

    def __init__(self, reserved: Sequence[str]) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._taken = dict.fromkeys(reserved, 1)

    def add(
        self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """Append a node with one output.

        Args:
            kind: the ONNX operator.
            inputs: names of what it reads.
            output: what to call its output; numbered where that is taken.
            domain: of the operator.
            attributes: of the node.

        Returns:
            The name of the output.
        """
        name = self._name(output or kind.lower())
        node = helper.make_node(kind, inputs, [name], name, domain=domain, **attributes)
        self._nodes.append(node)
        return name

    def constant(self, value: Tensor | list[int] | int, name: str) -> str:
        """Append an initializer; Python integers become int64."""
        tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.int64)
        name = self._name(name)
        self._initializers.append(numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def cast(self, value: str, kind: int, output: str = "") -> str:
        """Append a conversion to an element type of `TensorProto`."""
        return self.add("Cast", value, output=output, to=kind)

    def reshape(self, value: str, *shape: int, output: str = "") -> str:
        """Append a Reshape; 0 keeps an axis, -1 takes the rest."""
        return self.add("Reshape", value, self.constant([*shape], "shape"), output=output)

    def slice(self, value: str, start: str, end: str, axis: int) -> str:
        """Append a Slice along one axis; start and end are int64 (1,)."""
        return self.add("Slice", value, start, end, self.constant([axis], "axis"))

    def frames(self, value: str) -> str:
        """Append what reads how many frames (batch, channels, frames) has: int64 (1,)."""
        return self.add("Shape", value, start=2, end=3, output="frames")

    def result(self, source: str, name: str) -> None:
        """Give a value the name of a graph output."""
        self._nodes.append(helper.make_node("Identity", [source], [name], name))

    def model(
        self,
        name: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        opset: int,
        functions: Sequence[onnx.FunctionProto] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """The whole model, checked.

        Args:
            name: of the graph.
            inputs, outputs: of the graph.
            opset: version of the ONNX operators.
            functions: definitions of the operators of other domains.
            metadata: text by key, which runtimes read.
        """
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            self._initializers,
        )
        domains = {function.domain for function in functions}
        model = helper.make_model(
            graph,
            producer_name="zqlib",
            ir_version=IR_VERSION,
            opset_imports=[
                helper.make_opsetid("", opset),
                *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
            ],
            functions=functions,
        )
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model)
        return model

    def _name(self, wanted: str) -> str:
        """`wanted`, numbered if it is taken."""
        name = wanted
        while name in self._taken:
            name = f"{wanted}.{self._taken[wanted]}"
            self._taken[wanted] += 1
        self._taken[name] = 1
        return name
