"""The `triton` backend: integer kernels for NVIDIA GPUs, bit-identical to the reference.

torch holds the tensors, Triton's kernels compute (`products`, `rows`; `launches` gives them their
arguments). Requantizations and functions join the convolutions before them. On a GPU the launches
for a shape of a batch are recorded once as a CUDA graph and then replayed (`executor`). With
TRITON_INTERPRET=1, Triton's interpreter runs the same kernels without a GPU, slowly. The package
triton is imported when an executor is made, not before.
"""

from zqlib.integer.backends.triton.executor import Executor, find_device

__all__ = ["Executor", "find_device"]
