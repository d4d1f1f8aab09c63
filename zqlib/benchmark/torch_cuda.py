"""torch on an NVIDIA GPU, at its best: what our kernels there are compared with.

BatchNorm is folded and activations are channels-last. All utterances of a benchmark have one
length, so nothing is masked, which our kernels do all the same. The launches are recorded once as a
CUDA graph and then replayed, so that no time of Python is measured; `torch-compile` compiles the
network first, which fuses what follows each convolution.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from zqlib.integer.backends.triton.executor import record
from zqlib.quantization.fold import fold
from zqlib.quantization.graph import FloatGraph, Value, execute
from zqlib.quantization.nodes import FloatConv, FloatConv2d, FloatOperator, FloatPositions
from zqlib.quantization.scheme import preset

if TYPE_CHECKING:
    from zqlib.benchmark.engines import Inputs, Tokens

__all__ = ["TorchCuda", "full_network"]

_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchCuda:
    """See `zqlib.benchmark.engines.Engine`. Compiling and recording count as loading.

    As for the other engines, features are in main memory and the tokens return there.
    """

    def __init__(self, inputs: "Inputs") -> None:
        graph = fold(inputs.source.load().network, preset("w8a8"))
        self.features = torch.from_numpy(inputs.features)
        self.input = self.features.cuda()
        network = full_network(graph, _TYPES.get(inputs.system.precision, torch.float32))
        with _settings(inputs.system.precision), torch.no_grad():
            network(self.input)  # what depends on the shape alone is there from now on
            if inputs.system.engine == "torch-compile":
                network = torch.compile(make_fx(network)(self.input), dynamic=False)
            self.compute = record(lambda: network(self.input))
        self.count = sum(isinstance(o, FloatConv | FloatConv2d) for o in graph.operators)

    def run(self) -> Tensor:
        """See `Engine`; the copy to main memory waits for the GPU."""
        self.input.copy_(self.features)
        return self.compute().cpu()

    def tokens(self, result: Tensor) -> "Tokens":
        """See `Engine`."""
        return result.numpy()

    def layers(self) -> dict[str, int]:
        """See `Engine`."""
        return {"integer": 0, "float": self.count}


def full_network(graph: FloatGraph, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function on the GPU from features (batch, n_mels, frames) float32, all of them valid, to
    the best class of each frame, (batch, frames').

    Args:
        graph: the folded model, on the CPU.
        dtype: to compute in.
    """  # fmt: skip
    graph = graph.to("cuda")
    graph = replace(graph, operators=tuple(_converted(o, dtype) for o in graph.operators))
    kept: dict[tuple[str, int, int], Tensor] = {}  # made once, and no part of what is timed

    def full(x: Tensor) -> Value:
        key = "lengths", x.shape[0], x.shape[3]
        if key not in kept:
            kept[key] = torch.full((x.shape[0],), x.shape[3], device=x.device)
        return x, kept[key]

    def step(operator: FloatOperator, reads: Sequence[Value]) -> Value:
        if isinstance(operator, FloatPositions):
            key = operator.name, 1, reads[0][0].shape[3]
            if key not in kept:
                kept[key] = execute(operator, reads)[0].to(dtype)
            return full(kept[key])
        if not isinstance(operator, FloatConv):
            return full(execute(operator, reads)[0].to(dtype))
        return full(
            functional.conv2d(
                reads[0][0], operator.weight[:, :, None], operator.bias,
                (1, operator.stride), (0, operator.padding), (1, operator.dilation),
                operator.groups,
            )
        )  # fmt: skip

    def network(features: Tensor) -> Tensor:
        valid = full(features[:, :, None])[1]
        logits, _ = graph.run(features.to(dtype), valid, step=step)
        return logits.argmax(1)

    return network


def _converted(operator: FloatOperator, dtype: torch.dtype) -> FloatOperator:
    """Its tensors at a precision."""
    changed: dict[str, Any] = {
        name: value.to(dtype) for name, value in vars(operator).items() if isinstance(value, Tensor)
    }
    return replace(operator, **changed)


@contextmanager
def _settings(precision: str) -> Iterator[None]:
    """Products of float32 as TF32 only if asked for, and the fastest convolutions of cuDNN."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
