"""torch_dist checkpoints are read by torch's own loader, and what torch wrote is read back; damage is told plainly."""

import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem

from qedmeg.errors import UserError
from qedmeg.model.torch_dist import COMMON_FILE, FORMAT_FILE, METADATA_FILE, NewTensor, Reader, Writer

MATRIX = torch.arange(48.0).reshape(8, 6)
TENSORS = {"rows": MATRIX, "columns": MATRIX.bfloat16(), "whole": torch.arange(5, dtype=torch.float16)}
NEW = [
    NewTensor("rows", torch.float32, (8, 6), ((0, (0, 0), (4, 6)), (1, (4, 0), (4, 6)))),
    NewTensor("columns", torch.bfloat16, (8, 6), ((0, (0, 0), (8, 3)), (1, (0, 3), (8, 3)))),
    NewTensor("whole", torch.float16, (5,), ((1, (0,), (5,)),)),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with Writer(tmp_path, NEW) as writer:
        for key, tensor in TENSORS.items():
            for start in (3, 0):  # blocks that fit no chunk, and not in order
                writer.write_rows(key, start, tensor[start : start + 3 if start == 0 else None])
        writer.finish({"of": "a test"})
    return tmp_path


def test_torchs_own_loader_reads_it(checkpoint):
    state = {key: torch.zeros_like(tensor) for key, tensor in TENSORS.items()}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    assert all(torch.equal(state[key], tensor) for key, tensor in TENSORS.items())
    assert {path.name for path in checkpoint.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert torch.load(checkpoint / COMMON_FILE) == {"content_metadata": {"of": "a test"}}


def test_each_chunk_is_a_whole_record_of_torch_save(checkpoint):
    metadata = dcp.FileSystemReader(checkpoint).read_metadata()
    index = dcp.metadata.MetadataIndex("columns", torch.Size([0, 3]))
    place = metadata.storage_data[index]
    record = (checkpoint / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
    (checkpoint / "record.pt").write_bytes(record)
    assert torch.equal(torch.load(checkpoint / "record.pt", weights_only=True), TENSORS["columns"][:, 3:])


def test_rows_are_read_over_chunks(checkpoint):
    with Reader(checkpoint) as reader:
        for key, tensor in TENSORS.items():
            assert (reader.tensors[key].dtype, reader.tensors[key].shape) == (tensor.dtype, tuple(tensor.shape))
            for start in range(len(tensor)):
                for stop in range(start + 1, len(tensor) + 1):
                    rows = torch.empty_like(tensor[start:stop])
                    reader.read_rows(key, start, rows)
                    assert torch.equal(rows, tensor[start:stop])


def test_what_torch_saved_is_read(tmp_path):
    """Megatron's files too are written by torch's writer; views with a larger storage are among them."""
    state = {"matrix": MATRIX, "view": MATRIX[2:4], "step": torch.tensor(3), "object": {"a": [threading.Lock]}}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / FORMAT_FILE).write_text("{}")
    with Reader(tmp_path) as reader:
        assert set(reader.tensors) == {"matrix", "view", "step"}
        rows = torch.empty(2, 6)
        reader.read_rows("view", 0, rows)
        assert torch.equal(rows, MATRIX[2:4])


@pytest.mark.parametrize("missing", [METADATA_FILE, FORMAT_FILE, "__1_0.distcp"])
def test_a_missing_file(checkpoint, missing):
    (checkpoint / missing).unlink()
    with pytest.raises(UserError, match=rf"{missing}: (no such file|cannot be read)"):
        Reader(checkpoint)


def test_a_truncated_file(checkpoint):
    path = checkpoint / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"__1_0\.distcp: ends after [\d,]+ bytes of [\d,]+"):
        Reader(checkpoint)


def test_a_damaged_record(checkpoint):
    path = checkpoint / "__1_0.distcp"
    path.write_bytes(b"\0" * path.stat().st_size)
    with Reader(checkpoint) as reader, pytest.raises(UserError, match=r"__1_0\.distcp: the record of whole is damaged"):
        reader.read_rows("whole", 0, torch.empty(5, dtype=torch.float16))


def test_a_record_of_another_shape(checkpoint):
    metadata = pickle.loads((checkpoint / METADATA_FILE).read_bytes())
    whole = metadata.state_dict_metadata["whole"]
    whole.size = whole.chunks[0].sizes = torch.Size([4])
    (checkpoint / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with Reader(checkpoint) as reader, pytest.raises(UserError, match=r"whole is \[5\] in torch\.float16.*\[4\]"):
        reader.read_rows("whole", 0, torch.empty(4, dtype=torch.float16))


def test_chunks_that_do_not_make_up_the_tensor(checkpoint):
    metadata = pickle.loads((checkpoint / METADATA_FILE).read_bytes())
    metadata.state_dict_metadata["rows"].chunks.pop()
    (checkpoint / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="rows: its chunks do not make up the tensor"):
        Reader(checkpoint)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1})])
def test_metadata_that_is_none(checkpoint, content):
    (checkpoint / METADATA_FILE).write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint's metadata"):
        Reader(checkpoint)


class _Hostile:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_metadata_calls_nothing(checkpoint):
    metadata = pickle.loads((checkpoint / METADATA_FILE).read_bytes())
    metadata.planner_data = _Hostile(checkpoint / "made")
    (checkpoint / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with Reader(checkpoint) as reader:
        assert set(reader.tensors) == set(TENSORS)
    assert not (checkpoint / "made").exists()
    pickle.loads((checkpoint / METADATA_FILE).read_bytes())
    assert (checkpoint / "made").exists()  # so much for an ordinary unpickler


def test_metadata_that_points_out_of_the_folder(checkpoint):
    metadata = pickle.loads((checkpoint / METADATA_FILE).read_bytes())
    for index in metadata.storage_data:
        metadata.storage_data[index] = filesystem._StorageInfo("../../secret", 0, 1)
    (checkpoint / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=rf"{checkpoint}/secret: cannot be read"):
        Reader(checkpoint)
