"""What lies in a compressed safetensors file, read when it is asked for.

The file is unpacked to another that has no name, not to memory: whoever makes something else of the
weights of a large model, one layer after the other, never has all of them twice.
"""

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import safe_open
from torch import Tensor

__all__ = ["GZIP", "StoredTensors"]

_open: Any = safe_open  # its methods have no types

GZIP = 31  # zlib's `wbits` for gzip, whose header then holds no name and no time
_PIECE = 1 << 16
_MAX_BYTES_OF_TINY, _MAX_EXPANSION = 64 << 20, 20  # beyond, a file is not one of ours


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, a new copy each time.

    Args:
        path: a safetensors file, compressed by gzip.

    Raises:
        SafetensorError, ValueError, zlib.error: the file is not one, or not complete.
        OSError: it cannot be read, or there is no room in the system's temporary folder.
    """

    def __init__(self, path: Path) -> None:
        with tempfile.NamedTemporaryFile() as unpacked:
            _unpack(path, unpacked)
            unpacked.flush()
            self._file = _open(unpacked.name, "pt", backend="pread")
        self._names = dict.fromkeys(self._file.offset_keys())  # always in this order
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _unpack(path: Path, target: IO[bytes]) -> None:
    unpacker = zlib.decompressobj(wbits=GZIP)
    room = _MAX_BYTES_OF_TINY + _MAX_EXPANSION * path.stat().st_size
    with path.open("rb") as stream:
        while room >= 0 and (packed := stream.read(_PIECE)):
            room -= target.write(unpacker.decompress(packed))
    if room < 0 or not unpacker.eof or unpacker.unused_data:
        raise ValueError("it does not end where it should")
