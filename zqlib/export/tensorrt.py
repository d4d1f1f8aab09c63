"""TensorRT engines: build, inspect, save, load and run. The only module that imports TensorRT.

Networks are strongly typed, as TensorRT 11 has them always and 10.x on demand: all types are those
of the ONNX model, so INT8 comes from Q/DQ and FP16 from a model in float16; there is no fallback.
Nothing here has run yet: see the README. It is type-checked against the bindings of both versions.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor

from zqlib.errors import InputError
from zqlib.export.engine import EngineRecord, Precision, Profile, Shape, Shapes
from zqlib.export.tensorrt_layers import EngineLayer, engine_layers, not_int8
from zqlib.export.tensorrt_rules import violations, weighted_nodes
from zqlib.files import atomic_output

try:
    import tensorrt as trt
except ImportError as error:
    raise InputError(
        f"TensorRT cannot be imported ({error}); on a machine with an NVIDIA GPU run "
        "`pip install 'zqlib[gpu]'`."
    ) from error

__all__ = ["TensorRTRunner", "build_engine", "inspect_engine", "require_device"]

_DTYPES = {trt.DataType.FLOAT: torch.float32, trt.DataType.INT64: torch.int64}
_KEPT_SHAPES = 16


def require_device() -> None:
    """Check that this machine can build and run engines.

    Raises:
        InputError: TensorRT is older than 10, or torch sees no NVIDIA GPU.
    """
    if int(trt.__version__.partition(".")[0]) < 10:
        raise InputError(f"TensorRT {trt.__version__} is too old; install 10 or 11.")
    if not torch.cuda.is_available():
        raise InputError("torch sees no NVIDIA GPU; use a machine with one and torch for CUDA.")


def build_engine(
    model: onnx.ModelProto, precision: Precision, profile: Profile, cache: Path
) -> tuple[bytes, EngineRecord]:
    """Build an engine for the current device, and check what it became.

    Args:
        model: s8s8 Q/DQ for `int8`, float16 for `fp16`, float32 for `fp32`.
        precision: of the model.
        profile: sizes to accept.
        cache: folder of kernel timings, which make the next build on this device faster.

    Returns:
        The serialized engine and its record.

    Raises:
        InputError: the model breaks a rule, TensorRT refuses it, or a convolution or linear layer
            of an INT8 engine does not run in INT8.
    """
    require_device()
    if broken := violations(model, quantized=precision == "int8"):
        raise InputError(f"TensorRT would not take the model: {broken[0]}.")
    content = model.SerializeToString(deterministic=True)
    mels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    device = torch.cuda.get_device_name()
    timing_cache = cache / f"{device.replace(' ', '-')}-trt{trt.__version__}.timing"
    plan = _build(content, profile.shapes(mels), timing_cache)
    layers = inspect_engine(plan, profile.shapes(mels))
    if precision == "int8":
        _require_int8(layers, model)
    major, minor = torch.cuda.get_device_capability()
    return plan, EngineRecord(
        precision=precision,
        device=device,
        compute_capability=f"{major}.{minor}",
        tensorrt=trt.__version__,
        cuda=str(torch.version.cuda),
        mels=mels,
        batch=profile.batch,
        frames=profile.frames,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        layers=dict(Counter(layer.precision for layer in layers)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _build(model: bytes, shapes: Shapes, timing_cache: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 11 ignores the flag, for there are no other networks
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise InputError(f"TensorRT {trt.__version__} refuses the model ({errors}).")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    accepted = builder.create_optimization_profile()
    for name, (least, usual, greatest) in shapes.items():
        accepted.set_shape(name, trt.Dims(least), trt.Dims(usual), trt.Dims(greatest))
    config.add_optimization_profile(accepted)
    known = timing_cache.read_bytes() if timing_cache.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"TensorRT {trt.__version__} could not build it; its messages say why.")
    with atomic_output(timing_cache) as temporary:
        temporary.write_bytes(_bytes(config.get_timing_cache().serialize()))
    return _bytes(plan)


def _bytes(memory: trt.IHostMemory) -> bytes:
    return bytes(cast(Any, memory))  # a buffer, which its type does not tell


def _require_int8(layers: list[EngineLayer], model: onnx.ModelProto) -> None:
    weighted = weighted_nodes(model)
    if failed := not_int8(layers, weighted):
        name, precision = next(iter(failed.items()))
        raise InputError(
            f"{len(failed)} of {len(weighted)} convolutions and linear layers do not provably run "
            f"in INT8, first {name} ({precision}); try another version of TensorRT, or fp16."
        )


def inspect_engine(plan: bytes, shapes: Shapes) -> list[EngineLayer]:
    """The layers of an engine with their precisions, at the usual shapes.

    Raises:
        InputError: this TensorRT cannot read the engine, or the engine does not tell.
    """
    engine = _deserialize(plan)
    context = engine.create_execution_context()
    for name, (_, usual, _) in shapes.items():
        context.set_input_shape(name, usual)
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context  # without one, it tells no types of dynamic tensors
    return engine_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _deserialize(plan: bytes) -> trt.ICudaEngine:
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"TensorRT {trt.__version__} cannot read the engine; export it anew.")
    return engine


@dataclass(frozen=True)
class _Bound:
    """Everything that belongs to one shape of the inputs."""

    context: trt.IExecutionContext
    buffers: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph | None


class TensorRTRunner:
    """Runs an engine from buffers on the device, on a stream of its own, as CUDA graphs.

    Each shape of the inputs gets an execution context, buffers and a captured graph; those of the
    16 last shapes are kept.

    Args:
        plan: the engine.
        record: of the engine.
        graphs: capture and replay CUDA graphs.

    Raises:
        InputError: there is no GPU, or this TensorRT cannot read the engine.
    """

    def __init__(self, plan: bytes, record: EngineRecord, graphs: bool = True) -> None:
        require_device()
        self.record = record
        self._engine = _deserialize(plan)
        self._graphs = graphs
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._bound: dict[Shape, _Bound] = {}

    @classmethod
    def load(cls, path: Path, graphs: bool = True) -> "TensorRTRunner":
        """Read an engine that `zq export --to tensorrt` wrote.

        Raises:
            InputError: the file is missing or damaged, or made for another device or TensorRT.
        """
        require_device()
        record = EngineRecord.beside(path)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}); check the path.") from error
        if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
            raise InputError(f"{path} is not the engine of its record; export the model anew.")
        made = record.device, record.tensorrt
        here = torch.cuda.get_device_name(), trt.__version__
        if made != here:
            raise InputError(
                f"{path} was built for {made[0]} and TensorRT {made[1]}, here are {here[0]} and "
                f"{here[1]}; export the model here."
            )
        return cls(plan, record, graphs)

    def __call__(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a batch.

        Args:
            features: (batch, mels, frames) float32, on any device.
            lengths: (batch,) int64, valid frames.

        Returns:
            (batch, frames', classes) float32 and (batch,) int64 on the GPU. The call returns when
            they are there.

        Raises:
            InputError: a shape outside the engine's profile.
        """
        shape = tuple(features.shape)
        bound = self._bound.pop(shape, None) or self._bind(shape)
        self._bound[shape] = bound  # the last one used is the last one to go
        if len(self._bound) > _KEPT_SHAPES:
            self._bound.pop(next(iter(self._bound)))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            bound.buffers["audio_signal"].copy_(features, non_blocking=True)
            bound.buffers["length"].copy_(lengths, non_blocking=True)
            if bound.graph:
                bound.graph.replay()
            else:
                self._enqueue(bound.context)
            result = bound.buffers["logprobs"].clone(), bound.buffers["output_length"].clone()
        self._stream.synchronize()
        return result

    def _bind(self, shape: Shape) -> _Bound:
        context = self._engine.create_execution_context()
        inputs = {"audio_signal": shape, "length": shape[:1]}
        if not all(context.set_input_shape(name, size) for name, size in inputs.items()):
            raise InputError(
                f"The engine takes {self.record.mels} bands, batches of {self.record.batch} and "
                f"{self.record.frames} frames (least, usual, greatest), not {shape}."
            )
        buffers = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = _DTYPES[self._engine.get_tensor_dtype(name)]
            found = context.get_tensor_shape(name)
            size = [found[axis] for axis in range(len(found))]
            buffers[name] = torch.zeros(size, dtype=dtype, device="cuda")
            context.set_tensor_address(name, buffers[name].data_ptr())
        buffers["length"].fill_(shape[-1])
        torch.cuda.current_stream().synchronize()
        if not self._graphs:
            return _Bound(context, buffers, None)
        self._enqueue(context)  # once before the capture: it prepares the context for the shape
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._enqueue(context)
        return _Bound(context, buffers, graph)

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise InputError("TensorRT could not run the engine; its messages say why.")
