"""safetensors folders read and written at their offsets are the same as the library's, and damage is told plainly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.errors import UserError
from qedmeg.model.safetensors_file import INDEX_FILE, SINGLE_FILE, Reader, Writer, read_folder

TENSORS = {
    "matrix": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
    "half": torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "vector": torch.arange(11, dtype=torch.float16),
}


def _write(folder: Path, shard_bytes: int) -> None:
    writer = Writer(
        folder, [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()], shard_bytes
    )
    for name, tensor in reversed(TENSORS.items()):
        writer.write_rows(name, 2, tensor[2:])
        writer.write_rows(name, 0, tensor[:2])
    writer.close()


def test_a_single_file_is_the_librarys(tmp_path):
    _write(tmp_path, shard_bytes=10**6)
    found = load_file(tmp_path / SINGLE_FILE)
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert not (tmp_path / INDEX_FILE).exists()


def test_shards_are_the_librarys_and_the_index_names_them(tmp_path):
    _write(tmp_path, shard_bytes=150)  # 140, 48 and 22 bytes: the first alone, the others together
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index["weight_map"] == {"matrix": first, "half": second, "vector": second}
    assert index["metadata"]["total_size"] == 140 + 48 + 22
    found = load_file(tmp_path / first) | load_file(tmp_path / second)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_rows_of_the_librarys_files_are_read(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    with Reader(tmp_path) as reader:
        for name, tensor in TENSORS.items():
            assert torch.equal(reader.read(name), tensor)
            rows = torch.empty_like(tensor[1:3])
            reader.read_rows(name, 1, rows)
            assert torch.equal(rows, tensor[1:3])


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_folder(tmp_path)


def test_a_missing_shard(tmp_path):
    _write(tmp_path, shard_bytes=150)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: file is missing"):
        read_folder(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, 200])
def test_a_truncated_file(tmp_path, kept):
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    assert len(content) > kept + 1
    (tmp_path / SINGLE_FILE).write_bytes(content[:kept] if kept < 200 else content[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        read_folder(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    with Reader(tmp_path) as reader:
        (tmp_path / SINGLE_FILE).write_bytes(b"")
        with pytest.raises(UserError, match="ends inside tensor matrix"):
            reader.read("matrix")


def test_an_index_that_promises_what_no_shard_has(tmp_path):
    _write(tmp_path, shard_bytes=150)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["bias"] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match="lacks tensor bias"):
        read_folder(tmp_path)


def test_an_index_that_points_out_of_the_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (tmp_path / "inner" / INDEX_FILE).write_text(json.dumps({"weight_map": {"matrix": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="file is missing"):
        read_folder(tmp_path / "inner")
