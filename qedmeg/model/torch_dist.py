"""Read and write Megatron's torch_dist checkpoints rows at a time: no processes, no model, little memory.

The format is torch.distributed.checkpoint's with two files of Megatron's own. A tensor is made of chunks; each chunk is
a `torch.save` record in a `.distcp` file; `.metadata`, a pickle, says where each record lies; `metadata.json` names the
format and `common.pt` holds what is not a tensor. Megatron reads and writes records whole, so that a process holds the
largest tensor at least once. Here a record's frame is written first, with a hole where its data belongs, and rows are
put there (or fetched from there) at their place in the file.
"""

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from qedmeg.errors import UserError
from qedmeg.model import tensor_bytes

METADATA_FILE = ".metadata"
FORMAT_FILE = "metadata.json"
COMMON_FILE = "common.pt"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_REMEDY = "the checkpoint is not whole: convert or save it again"


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and the file that its bytes are in."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Of its record in the file, in bytes."""
    length: int
    """Of its record."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint: all its chunks, which tile its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: each chunk is a rank, its start and its shape. The chunks must tile the shape."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]


class _Record(io.RawIOBase):
    """A span of an open file, as a file of its own."""

    def __init__(self, file: int, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self.length - self.position, 0)]
        count = os.preadv(self.file, [view], self.offset + self.position) if len(view) else 0
        self.position += count
        return count


def _data_offset(file: int, offset: int, length: int) -> int:
    """Where in the file the data of a record with one storage begins."""
    stream = io.BufferedReader(_Record(file, offset, length))
    with zipfile.ZipFile(stream) as archive:
        found = [info for info in archive.infolist() if info.filename.partition("/")[2].startswith("data/")]
    if len(found) != 1 or found[0].compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile("it is not one tensor")
    stream.seek(found[0].header_offset)
    # a local file header: 30 bytes, the last four the lengths of the name and the extra field that follow
    name, extra = struct.unpack("<26xHH", stream.read(30))
    return offset + found[0].header_offset + 30 + int(name) + int(extra)


class Reader:
    """Reads rows of a checkpoint's tensors. Keeps files open; close it, or use it in a with-block.

    Raises:
        UserError: a file is missing, cut short or not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = _read_metadata(folder)
        self._files: dict[Path, int] = {}
        self._data: dict[tuple[Path, int], int] = {}
        try:
            self._check_files()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _check_files(self) -> None:
        for key, tensor in self.tensors.items():
            if sum(math.prod(chunk.shape) for chunk in tensor.chunks) != math.prod(tensor.shape):
                raise UserError(
                    f"{self.folder / METADATA_FILE}: {key}: its chunks do not make up the tensor; {_REMEDY}"
                )
            for chunk in tensor.chunks:
                if chunk.path not in self._files:
                    try:
                        self._files[chunk.path] = os.open(chunk.path, os.O_RDONLY)
                    except OSError as error:
                        raise UserError(f"{chunk.path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        ends: dict[Path, int] = {}
        for tensor in self.tensors.values():
            for chunk in tensor.chunks:
                ends[chunk.path] = max(ends.get(chunk.path, 0), chunk.offset + chunk.length)
        for path, end in ends.items():
            size = os.fstat(self._files[path]).st_size
            if size < end:
                raise UserError(f"{path}: ends after {size:,} bytes of {end:,}; {_REMEDY}")

    def _find(self, key: str, chunk: Chunk) -> int:
        """Where in its file the chunk's data begins."""
        place = (chunk.path, chunk.offset)
        if place not in self._data:
            file, tensor = self._files[chunk.path], self.tensors[key]
            try:
                with torch.serialization.skip_data():  # shape and strides without the data
                    frame = torch.load(
                        io.BufferedReader(_Record(file, chunk.offset, chunk.length)), "cpu", weights_only=True
                    )
                start = _data_offset(file, chunk.offset, chunk.length)
            except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, OSError, ValueError, struct.error):
                raise UserError(f"{chunk.path}: the record of {key} is damaged; {_REMEDY}") from None
            if not isinstance(frame, torch.Tensor) or not frame.is_contiguous():
                raise UserError(f"{chunk.path}: the record of {key} is not a plain tensor; {_REMEDY}")
            if frame.dtype != tensor.dtype or tuple(frame.shape) != chunk.shape:
                raise UserError(
                    f"{chunk.path}: {key} is {list(frame.shape)} in {frame.dtype}, and {METADATA_FILE} says "
                    f"{list(chunk.shape)} in {tensor.dtype}; {_REMEDY}"
                )
            self._data[place] = start + int(frame.storage_offset()) * frame.itemsize
        return self._data[place]

    def read_rows(self, key: str, start: int, target: torch.Tensor) -> None:
        """Fill `target` [rows, ...] (contiguous, the tensor's dtype) with rows `start:start+rows` of tensor `key`."""
        stop = start + target.shape[0]
        for chunk in self.tensors[key].chunks:
            first, last = max(start, chunk.start[0]), min(stop, chunk.start[0] + chunk.shape[0])
            if first >= last:
                continue
            box = target[first - start : last - start]
            for dimension in range(1, target.ndim):
                box = box.narrow(dimension, chunk.start[dimension], chunk.shape[dimension])
            rows = box if box.is_contiguous() else torch.empty(box.shape, dtype=box.dtype)
            row_bytes = math.prod(chunk.shape[1:]) * rows.itemsize
            position = self._find(key, chunk) + (first - chunk.start[0]) * row_bytes
            if not tensor_bytes.read_into(rows, self._files[chunk.path], position):
                raise UserError(f"{chunk.path}: ends inside {key}; {_REMEDY}")
            if rows is not box:
                box.copy_(rows)


class Writer:
    """Writes a checkpoint whose tensors are all known beforehand, rows in any order.

    Every rank has one file, as if Megatron had saved from that many processes. All rows must be written before
    `finish`; before it, Megatron does not take the folder for a checkpoint.
    """

    def __init__(self, folder: Path, tensors: Iterable[NewTensor]) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._files: dict[Path, int] = {}
        self._data: dict[tuple[Path, int], int] = {}
        for tensor in tensors:
            chunks = tuple(self._write_frame(tensor.dtype, *chunk) for chunk in tensor.chunks)
            self.tensors[tensor.key] = StoredTensor(tensor.dtype, tensor.shape, chunks)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _write_frame(self, dtype: torch.dtype, rank: int, start: tuple[int, ...], shape: tuple[int, ...]) -> Chunk:
        path = self.folder / f"__{rank}_0.distcp"
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        file = self._files[path]
        with open(file, "r+b", closefd=False) as stream:
            offset = stream.seek(0, os.SEEK_END)
            with torch.serialization.skip_data():  # the tensor's memory is never touched
                torch.save(torch.empty(shape, dtype=dtype), stream)
            length = stream.tell() - offset
        self._data[path, offset] = _data_offset(file, offset, length)
        return Chunk(start, shape, path, offset, length)

    def write_rows(self, key: str, start: int, rows: torch.Tensor) -> None:
        """Write `rows` [n, ...] as rows `start:start+n` of tensor `key`, each chunk's part to its file."""
        stop = start + rows.shape[0]
        for chunk in self.tensors[key].chunks:
            first, last = max(start, chunk.start[0]), min(stop, chunk.start[0] + chunk.shape[0])
            if first >= last:
                continue
            box = rows[first - start : last - start]
            for dimension in range(1, rows.ndim):
                box = box.narrow(dimension, chunk.start[dimension], chunk.shape[dimension])
            row_bytes = math.prod(chunk.shape[1:]) * rows.itemsize
            position = self._data[chunk.path, chunk.offset] + (first - chunk.start[0]) * row_bytes
            tensor_bytes.write_from(box, self._files[chunk.path], position)

    def finish(self, content_metadata: dict[str, Any]) -> None:
        """Bring the tensors to disk and write what makes the folder a checkpoint.

        `content_metadata` is what Megatron's `dist_checkpointing.save` takes by that name.
        """
        for file in self._files.values():
            os.fsync(file)
        torch.save({"content_metadata": content_metadata}, self.folder / COMMON_FILE)
        with open(self.folder / METADATA_FILE, "wb") as stream:
            pickle.dump(_to_metadata(self.tensors), stream)
        (self.folder / FORMAT_FILE).write_text(json.dumps(_FORMAT))


def _to_metadata(tensors: dict[str, StoredTensor]) -> dcp.Metadata:
    """What torch's FileSystemWriter would have written for these tensors."""
    described: dict[str, Any] = {}
    storage = {}
    for key, tensor in tensors.items():
        chunks = [dcp.ChunkStorageMetadata(torch.Size(chunk.start), torch.Size(chunk.shape)) for chunk in tensor.chunks]
        properties = dcp.TensorProperties(dtype=tensor.dtype)
        described[key] = dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for chunk in tensor.chunks:
            index = dcp.MetadataIndex(key, torch.Size(chunk.start))
            storage[index] = filesystem._StorageInfo(chunk.path.name, chunk.offset, chunk.length)
    return dcp.Metadata(
        described, storage_data=storage, storage_meta=dcp.StorageMeta(), version=filesystem.CURRENT_DCP_VERSION
    )


class _Ignored:
    """Stands for everything in `.metadata` that is not needed to find tensors."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    __setitem__ = append = extend = add = __init__


class _MetadataUnpickler(pickle.Unpickler):
    """A pickle can call any function when it is read; here only the classes that describe tensors are found."""

    _CLASSES = (
        dcp.Metadata,
        dcp.MetadataIndex,
        dcp.TensorStorageMetadata,
        dcp.ChunkStorageMetadata,
        dcp.TensorProperties,
        dcp._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
    )
    _KNOWN: dict[tuple[str, str], Any] = {(found.__module__, found.__name__): found for found in _CLASSES} | {
        ("torch", str(dtype).removeprefix("torch.")): dtype
        for dtype in vars(torch).values()
        if isinstance(dtype, torch.dtype)
    }

    def find_class(self, module: str, name: str) -> Any:
        return self._KNOWN.get((module, name), _Ignored)


def _read_metadata(folder: Path) -> dict[str, StoredTensor]:
    path = folder / METADATA_FILE
    for needed in (path, folder / FORMAT_FILE):
        if not needed.is_file():
            raise UserError(f"{needed}: no such file; {folder} is not a torch_dist checkpoint, or not a whole one")
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        found = {}
        for key, stored in metadata.state_dict_metadata.items():
            if not isinstance(stored, dcp.TensorStorageMetadata):
                continue  # an object, such as a random state
            chunks = []
            for chunk in stored.chunks:
                info = metadata.storage_data[dcp.MetadataIndex(key, chunk.offsets)]
                file = folder / Path(info.relative_path).name
                chunks.append(Chunk(tuple(chunk.offsets), tuple(chunk.sizes), file, info.offset, info.length))
            found[key] = StoredTensor(stored.properties.dtype, tuple(stored.size), tuple(chunks))
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a checkpoint's metadata ({error!r}); {_REMEDY}") from None
    return found
