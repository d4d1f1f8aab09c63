"""A Conformer as a graph: BatchNorm folded into its depthwise convolution, constant factors too."""

import math

from torch import Tensor, nn

from zqlib.models.conformer import Attention, ConformerCTC, ConformerLayer, Convolution, FeedForward
from zqlib.models.layers import BatchNorm
from zqlib.quantization.batch_norm import fold_batch_norm
from zqlib.quantization.graph import FloatGraph
from zqlib.quantization.nodes import (
    Activation,
    FloatAttention,
    FloatConv,
    FloatConv2d,
    FloatFunction,
    FloatLayerNorm,
    FloatOperator,
    FloatPositions,
    FloatProduct,
)
from zqlib.quantization.scheme import QuantScheme

__all__ = ["fold_conformer"]


def fold_conformer(network: ConformerCTC, scheme: QuantScheme) -> FloatGraph:
    """Express a Conformer as a graph without BatchNorm.

    A linear layer is a convolution of one tap. The factor of a half of the feed-forward modules and
    the scaling of the input by sqrt(d_model) are folded into the weights before them. The scheme
    names the bits of the residual stream and of what goes into a Swish or a sigmoid.
    """
    config = network.config
    graph = _Builder(scheme)
    stream = graph.subsampling(network)
    graph.operators.append(FloatPositions("positions", stream, config.d_model))
    for index, layer in enumerate(network.encoder.layers):
        assert isinstance(layer, ConformerLayer)
        last = index == config.n_layers - 1
        stream = graph.layer(f"layer{index}", layer, stream, last)
    decoder = network.decoder.decoder_layers[0]
    assert isinstance(decoder, nn.Conv1d)
    graph.operators.append(
        FloatConv("decoder", stream, "logits", decoder.weight.detach(), _bias(decoder))
    )
    return FloatGraph(tuple(graph.operators), "features", config.n_mels, "logits")


class _Builder:
    """Appends operators; each method returns the name of its output."""

    def __init__(self, scheme: QuantScheme) -> None:
        self.operators: list[FloatOperator] = []
        self.stream_bits, self.gate_bits = scheme.stream_bits, scheme.gate_bits

    def subsampling(self, network: ConformerCTC) -> str:
        """Two strided convolutions and a linear layer, from the features to the stream."""
        block, config = network.encoder.pre_encode, network.config
        current = "features"
        for index, conv in enumerate(m for m in block.conv if isinstance(m, nn.Conv2d)):
            name = f"subsampling.conv{index}"
            self.operators.append(
                FloatConv2d(name, current, f"{name}.acc", conv.weight.detach(), _bias(conv), 2, 1)
            )
            self.operators.append(Activation(f"{name}.relu", (f"{name}.acc",), relu=True))
            current = f"{name}.relu"
        factor = math.sqrt(config.d_model) if config.xscaling else 1.0
        accumulator = self.linear("subsampling.out", current, block.out, factor)
        return self.activation("subsampling.stream", accumulator, bits=self.stream_bits)

    def layer(self, name: str, layer: ConformerLayer, stream: str, last: bool) -> str:
        """A Conformer layer, from stream to stream; of the last one, an 8-bit tensor."""
        normed = self.norm(f"{name}.ff1.norm", layer.norm_feed_forward1, stream)
        half = self.feed_forward(f"{name}.ff1", layer.feed_forward1, normed)
        stream = self.activation(f"{name}.ff1.stream", stream, half, bits=self.stream_bits)
        normed = self.norm(f"{name}.attention.norm", layer.norm_self_att, stream)
        attended = self.attention(f"{name}.attention", layer.self_attn, normed)
        stream = self.activation(
            f"{name}.attention.stream", stream, attended, bits=self.stream_bits
        )
        normed = self.norm(f"{name}.conv.norm", layer.norm_conv, stream)
        convolved = self.convolution(f"{name}.conv", layer.conv, normed)
        stream = self.activation(f"{name}.conv.stream", stream, convolved, bits=self.stream_bits)
        normed = self.norm(f"{name}.ff2.norm", layer.norm_feed_forward2, stream)
        half = self.feed_forward(f"{name}.ff2", layer.feed_forward2, normed)
        stream = self.activation(f"{name}.ff2.stream", stream, half, bits=self.stream_bits)
        return self.norm(
            f"{name}.out", layer.norm_out, stream, bits=None if last else self.stream_bits
        )

    def feed_forward(self, name: str, module: FeedForward, source: str) -> str:
        """Half of a feed-forward module."""
        accumulator = self.linear(f"{name}.linear1", source, module.linear1)
        hidden = self.activation(f"{name}.hidden", accumulator, bits=self.gate_bits)
        swish = self.function(f"{name}.swish", hidden, "swish")
        return self.linear(f"{name}.linear2", swish, module.linear2, 0.5)

    def attention(self, name: str, module: Attention, source: str) -> str:
        """Multi-head attention with relative positions."""
        reads = [
            self.activation(
                f"{name}.{part}",
                self.linear(f"{name}.linear_{part}", start, getattr(module, f"linear_{part}")),
            )
            for part, start in (("q", source), ("k", source), ("v", source), ("pos", "positions"))
        ]
        self.operators.append(
            FloatAttention(
                f"{name}.product",
                (reads[0], reads[1], reads[2], reads[3]),
                f"{name}.product.acc",
                module.heads,
                module.pos_bias_u.detach().flatten(),
                module.pos_bias_v.detach().flatten(),
            )  # fmt: skip
        )
        context = self.activation(f"{name}.context", f"{name}.product.acc")
        return self.linear(f"{name}.linear_out", context, module.linear_out)

    def convolution(self, name: str, module: Convolution, source: str) -> str:
        """The convolution module; its first layer's halves are the value and the gate."""
        weight, bias = module.pointwise_conv1.weight.detach(), _bias(module.pointwise_conv1)
        half = weight.shape[0] // 2
        for part, rows in (("value", slice(half)), ("gate", slice(half, None))):
            self.operators.append(
                FloatConv(
                    f"{name}.{part}.linear", source, f"{name}.{part}.acc", weight[rows], bias[rows]
                )
            )
            bits = self.gate_bits if part == "gate" else None
            self.activation(f"{name}.{part}", f"{name}.{part}.acc", bits=bits)
        sigmoid = self.function(f"{name}.sigmoid", f"{name}.gate", "sigmoid")
        self.operators.append(
            FloatProduct(f"{name}.glu.product", (f"{name}.value", sigmoid), f"{name}.glu.acc")
        )
        gated = self.activation(f"{name}.glu", f"{name}.glu.acc")
        self.operators.append(_fold_depthwise(f"{name}.depthwise.conv", gated, module))
        swish = self.function(
            f"{name}.swish",
            self.activation(f"{name}.depthwise", f"{name}.depthwise.conv.acc", bits=self.gate_bits),
            "swish",
        )
        return self.linear(f"{name}.pointwise2", swish, module.pointwise_conv2)

    def linear(
        self, name: str, source: str, layer: nn.Linear | nn.Conv1d, factor: float = 1.0
    ) -> str:
        """A linear layer, or a convolution of one tap, times a constant."""
        weight = layer.weight.detach().flatten(1)[:, :, None] * factor
        bias = None if layer.bias is None else layer.bias.detach() * factor
        self.operators.append(FloatConv(name, source, f"{name}.acc", weight, bias))
        return f"{name}.acc"

    def activation(self, name: str, *inputs: str, bits: int | None = None) -> str:
        """A sum that is quantized."""
        self.operators.append(Activation(name, inputs, relu=False, bits=bits))
        return name

    def norm(self, name: str, layer: nn.LayerNorm, source: str, bits: int | None = None) -> str:
        """A LayerNorm."""
        gamma, beta = layer.weight.detach(), layer.bias.detach()
        self.operators.append(FloatLayerNorm(name, source, gamma, beta, layer.eps, bits))
        return name

    def function(self, name: str, source: str, function: str) -> str:
        """A function of each element."""
        self.operators.append(FloatFunction(name, source, function))  # type: ignore[arg-type]
        return name


def _bias(layer: nn.Conv1d | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def _fold_depthwise(name: str, source: str, module: Convolution) -> FloatConv:
    conv, norm = module.depthwise_conv, module.batch_norm
    assert isinstance(norm, BatchNorm)
    weight, bias = fold_batch_norm(conv, norm)
    return FloatConv(
        name, source, f"{name}.acc", weight, bias, padding=module.padding, groups=conv.groups
    )
