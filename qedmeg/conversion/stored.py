"""A model on disk, in Hugging Face's format or in Megatron's, read a block of rows at a time."""

import hashlib
import math
from pathlib import Path

import torch

from qedmeg.errors import UserError
from qedmeg.model import families, torch_dist, weights
from qedmeg.model.checkpoint_folder import INFO_FILE, Checkpoint, read_checkpoint_folder
from qedmeg.model.safetensors_file import Reader
from qedmeg.model.tensor_bytes import blocks
from qedmeg.model.weights import GlobalTensor


class HuggingFaceModel:
    """A Hugging Face folder. Its tensors are read as Megatron lays them out.

    Raises:
        UserError: the folder is not whole, not of a known architecture, or its tensors are not those of its config.
    """

    def __init__(self, folder: Path) -> None:
        self.path = self.hf = folder
        self.model = families.read_architecture(folder)
        self.notes: list[str] = []
        self._reader = Reader(folder)
        weights.check_sources(self.model, self._reader.tensors, folder)
        if weights.stores_tied_output(self._reader, self.model, folder):
            name, embedding = weights.TIED_OUTPUT, families.EMBEDDING.sources[0][0]
            self.notes.append(f"{name} is stored beside {embedding}, equal to it, and left out: the model is tied")

    def __enter__(self) -> "HuggingFaceModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def dtype(self, tensor: GlobalTensor) -> torch.dtype:
        """In which it is stored."""
        return self._reader.tensors[tensor.sources[0].name].dtype

    def read(self, tensor: GlobalTensor, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of a Megatron tensor; rows beyond its own, padding, are zero."""
        return weights.read_rows(self._reader, tensor, start, stop)

    def place(self, tensor: GlobalTensor) -> str:
        """Where a tensor is stored, for messages."""
        names = ", ".join(source.name for source in tensor.sources)
        return f"{self._reader.tensors[tensor.sources[0].name].path}: tensor {names}"


class MegatronModel:
    """A checkpoint folder. Of its tensors only the model's weights are looked at.

    Raises:
        UserError: a file is missing or cut short, or the tensors are not those of its config.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.hf, self.model = checkpoint.path, checkpoint.hf, checkpoint.model
        self.notes: list[str] = []
        self._reader = torch_dist.Reader(checkpoint.path)
        self._check_tensors()

    def __enter__(self) -> "MegatronModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def _check_tensors(self) -> None:
        expected = weights.global_tensors(self.model)
        where = self.path / torch_dist.METADATA_FILE
        described = f"{self.hf.name}/config.json describes a {self.model.name} of {self.model.layers} layers"
        for key, tensor in expected.items():
            if key not in self._reader.tensors:
                raise UserError(f"{where}: lacks {key}; {described}: it is of another model")
            found = self._reader.tensors[key]
            padded = len(found.shape) == len(tensor.shape) and found.shape[0] >= tensor.shape[0]
            vocabulary = key in (families.EMBEDDING.key, families.OUTPUT.key)
            if found.shape != tensor.shape and not (vocabulary and padded and found.shape[1:] == tensor.shape[1:]):
                raise UserError(
                    f"{where}: {key} has shape {list(found.shape)}; its config.json makes it {list(tensor.shape)}"
                )
            if found.dtype not in families.DTYPES.values():
                raise UserError(f"{where}: {key} has dtype {found.dtype}; supported are {', '.join(families.DTYPES)}")
        for key in self._reader.tensors:
            if key.startswith(("decoder.", "embedding.", "output_layer.")) and key not in expected:
                raise UserError(f"{where}: {key} is not part of the model; {described}")

    def dtype(self, tensor: GlobalTensor) -> torch.dtype:
        """In which it is stored."""
        return self._reader.tensors[tensor.key].dtype

    def read(self, tensor: GlobalTensor, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of a tensor."""
        rows = torch.empty((stop - start, *tensor.shape[1:]), dtype=self.dtype(tensor))
        self._reader.read_rows(tensor.key, start, rows)
        return rows

    def place(self, tensor: GlobalTensor) -> str:
        """Where a tensor is stored, for messages."""
        return f"{self.path}: {tensor.key}"


StoredModel = HuggingFaceModel | MegatronModel


def read_whole_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint folder to train from, looked at more closely than by its marker: without the look, a damaged file
    would end a run in Megatron's traceback.

    Raises:
        UserError: it was not written to its end, a file is missing or cut short, or its tensors are of another model.
    """
    checkpoint = read_checkpoint_folder(folder)
    with MegatronModel(checkpoint):
        return checkpoint


def nbytes(stored: StoredModel, dtype: torch.dtype | None = None) -> int:
    """Bytes of all tensors of a model, in `dtype` or as they are stored."""
    tensors = weights.global_tensors(stored.model).values()
    return sum(math.prod(tensor.shape) * (dtype or stored.dtype(tensor)).itemsize for tensor in tensors)


def weights_digest(stored: StoredModel) -> str:
    """SHA-256 over a model's tensors in Megatron's layout without padding: of each its key, dtype, shape and bytes.

    The same for a checkpoint and for the Hugging Face folder that it was converted to or from, however either is cut
    into files.
    """
    digest = hashlib.sha256()
    for tensor in weights.global_tensors(stored.model).values():
        digest.update(f"{tensor.key} {stored.dtype(tensor)} {list(tensor.shape)}\n".encode())
        for start, stop in blocks(tensor.shape, stored.dtype(tensor)):
            digest.update(stored.read(tensor, start, stop).contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_model(folder: Path) -> StoredModel:
    """The model in a folder of either format.

    Raises:
        UserError: there is none, or it is not whole.
    """
    if (folder / INFO_FILE).is_file():
        return MegatronModel(read_checkpoint_folder(folder))
    return HuggingFaceModel(folder)
