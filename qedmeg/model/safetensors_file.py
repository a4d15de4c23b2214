"""Read and write safetensors folders a slice at a time, in bounded memory.

The safetensors library maps whole files, and mapped pages count as resident memory, and it writes a file only from
tensors that all are in memory. Conversion must hold neither, so bytes are read and written here at their offsets. The
library still checks every file that is opened (its header, its length, overlaps). Format: 8 bytes of header length,
the header in JSON, the data. https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qedmeg.errors import UserError
from qedmeg.model import tensor_bytes

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SHARD_BYTES = 5 * 10**9

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its file, its first byte in it, its dtype and shape."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        UserError: the file is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path}: file is missing; its folder's index names it: fetch the checkpoint again")
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from None
    header.pop("__metadata__", None)
    infos = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {name} has dtype {entry['dtype']}; supported are {', '.join(DTYPES)}")
        start = 8 + length + entry["data_offsets"][0]
        infos[name] = TensorInfo(path, start, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return infos


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a Hugging Face folder, in one file or in shards listed by an index.

    Raises:
        UserError: there are no safetensors files, or a shard is missing, truncated or lacks a tensor of the index.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise UserError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; give a Hugging Face model folder")
        return read_header(folder / SINGLE_FILE)
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{index}: not a safetensors index ({error}); fetch the checkpoint again") from None
    headers = {name: read_header(folder / Path(name).name) for name in sorted(set(weight_map.values()))}
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise UserError(f"{folder / name}: lacks tensor {tensor}, which {INDEX_FILE} promises; fetch it again")
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


class Reader:
    """Reads rows of tensors from a folder. Keeps files open; close it, or use it in a with-block."""

    def __init__(self, folder: Path) -> None:
        self.tensors = read_folder(folder)
        self._files: dict[Path, int] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def read_rows(self, name: str, start: int, target: torch.Tensor) -> None:
        """Fill `target` [rows, ...] (contiguous, the tensor's dtype) with rows `start:start+rows` of tensor `name`.

        Raises:
            UserError: the file ends before the rows do.
        """
        info = self.tensors[name]
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        if not tensor_bytes.read_into(target, self._file(info), info.offset + start * row_bytes):
            raise UserError(f"{info.path}: ends inside tensor {name}; fetch or write it again")

    def read_columns(self, name: str, start: int, column: int, target: torch.Tensor) -> None:
        """Fill `target` [rows, columns] from row `start` and `column` of a matrix, reading no other columns.

        Raises:
            UserError: the file ends before the rows do.
        """
        info = self.tensors[name]
        row_bytes = info.shape[1] * info.dtype.itemsize
        first = info.offset + start * row_bytes + column * info.dtype.itemsize
        for row, part in enumerate(target):
            if not tensor_bytes.read_into(part, self._file(info), first + row * row_bytes):
                raise UserError(f"{info.path}: ends inside tensor {name}; fetch or write it again")

    def _file(self, info: TensorInfo) -> int:
        if info.path not in self._files:
            self._files[info.path] = os.open(info.path, os.O_RDONLY)
        return self._files[info.path]

    def read(self, name: str) -> torch.Tensor:
        """The whole of tensor `name`."""
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        self.read_rows(name, 0, tensor)
        return tensor


class Writer:
    """Writes a folder of safetensors shards, tensors in any order, each written once and whole.

    The files are of their full length from the start, so a writer that dies leaves files that open: the caller marks
    a folder as complete when all is written.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        shards: list[dict[str, TensorInfo]] = [{}]
        filled = 0
        for name, dtype, shape in tensors:
            info = TensorInfo(folder, filled, dtype, shape)
            if filled and filled + info.nbytes > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = TensorInfo(folder, filled, dtype, shape)
            filled += info.nbytes
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[Path, int] = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._start_file(folder / name, shard)
        if len(shards) > 1:
            total = sum(info.nbytes for info in self.tensors.values())
            weight_map = {name: info.path.name for name, info in self.tensors.items()}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))

    def _start_file(self, path: Path, shard: dict[str, TensorInfo]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, info in shard.items():
            span = [info.offset, info.offset + info.nbytes]
            header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": span}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(file, len(text).to_bytes(8, "little") + text, 0)
        start = 8 + len(text)
        for name, info in shard.items():
            self.tensors[name] = TensorInfo(path, start + info.offset, info.dtype, info.shape)
        os.ftruncate(file, start + sum(info.nbytes for info in shard.values()))
        self._files[path] = file

    def write_rows(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Write `rows` [n, ...] as rows `start:start+n` of tensor `name`."""
        info = self.tensors[name]
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        tensor_bytes.write_from(rows, self._files[info.path], info.offset + start * row_bytes)

    def close(self) -> None:
        """Bring every file to disk and close it."""
        for file in self._files.values():
            os.fsync(file)
            os.close(file)
        self._files.clear()
