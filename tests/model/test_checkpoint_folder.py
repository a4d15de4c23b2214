"""A folder is there whole or not at all, and nothing of the user's is replaced unasked."""

import json

import pytest

from qedmeg.errors import UserError
from qedmeg.model import checkpoint_folder
from qedmeg.model.checkpoint_folder import CheckpointInfo, partial_folder, publish, read_checkpoint_folder
from tests.checkpoints import make_checkpoint

INFO = CheckpointInfo("Qwen3ForCausalLM", "float32", 300, tp=1, pp=1, ep=1)


def _write(out, content="new", overwrite=False):
    partial = partial_folder(out, overwrite, size=1)
    (partial / "file").write_text(content)
    assert not (out / "file").exists() or (out / "file").read_text() != content
    publish(partial, out)


def test_a_folder_appears_marked(tmp_path):
    _write(tmp_path / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == ["complete", "file"]


def test_a_complete_folder_is_replaced_only_when_asked(tmp_path):
    _write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="is there and complete; give another folder, or --overwrite"):
        _write(tmp_path / "out")
    _write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_an_interruption_left_is_replaced(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").touch()
    (tmp_path / "out").mkdir()  # renamed, not yet marked
    (tmp_path / "out" / checkpoint_folder.INFO_FILE).touch()
    _write(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["complete", "file"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "out" / "report.json").write_text('{"kind": "of a lesion"}')
    with pytest.raises(UserError, match="out: holds other files"):
        partial_folder(tmp_path / "out", overwrite=True, size=1)
    with pytest.raises(UserError, match="is a file"):
        partial_folder(tmp_path / "out" / "thesis.tex", overwrite=True, size=1)


def test_too_little_room(tmp_path):
    with pytest.raises(UserError, match=r"GB are free and 1000000000\.0 GB needed"):
        partial_folder(tmp_path / "out", overwrite=False, size=10**18)
    assert not list(tmp_path.iterdir())


def _checkpoint(folder, info=INFO):
    make_checkpoint(folder.with_name("hf"))
    folder.mkdir()
    checkpoint_folder.write_description(folder, info, folder.with_name("hf"))
    checkpoint_folder.mark_complete(folder)
    return folder


def test_a_checkpoint_describes_itself(tmp_path):
    found = read_checkpoint_folder(_checkpoint(tmp_path / "out"))
    assert found.info == INFO
    assert found.model.hidden == 64
    assert sorted(path.name for path in found.hf.iterdir()) == ["config.json", "generation_config.json"]


def test_files_that_are_not_weights_are_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source / "additional_chat_templates", source / "onnx", target):
        folder.mkdir(parents=True)
    kept = ["config.json", "tokenizer.model", "merges.txt", "LICENSE", "additional_chat_templates/tools.jinja"]
    left = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md", ".gitattributes"]
    for name in [*kept, *left, "complete", "report.json", "verify.json", "verify.md", "onnx/model.json"]:
        (source / name).write_text(name)
    checkpoint_folder.copy_hf_files(source, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == set(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "complete").unlink(), "holds no file 'complete': it was not written to its end"),
        (lambda folder: (folder / "qedmeg.json").unlink(), r"holds no qedmeg\.json"),
        (lambda folder: (folder / "qedmeg.json").write_text("{"), r"qedmeg\.json: does not describe a checkpoint"),
        (lambda folder: (folder / "qedmeg.json").write_text('{"a": 1}'), r"qedmeg\.json: does not describe"),
        (lambda folder: (folder / "hf" / "config.json").unlink(), r"hf/config\.json: no such file"),
        (lambda folder: _set(folder, format=99), "format: 99 is not known here"),
        (lambda folder: _set(folder, vocabulary=301), "vocabulary of 301, but hf/config.json is of"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, change, message):
    folder = _checkpoint(tmp_path / "out")
    change(folder)
    with pytest.raises(UserError, match=message):
        read_checkpoint_folder(folder)


def _set(folder, **fields):
    path = folder / checkpoint_folder.INFO_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
