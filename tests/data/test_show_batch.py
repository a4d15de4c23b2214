"""The command as a user runs it, on a terminal and in a log."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import yaml

from qedmeg.data import show_batch
from qedmeg.errors import UserError
from qedmeg.model import checkpoint_folder
from qedmeg.model.checkpoint_folder import CheckpointInfo
from tests.checkpoints import make_checkpoint
from tests.data.conftest import PLAIN, save_byte_level


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    show_batch.add_arguments(parser)
    return show_batch.main(parser.parse_args(arguments))


@pytest.fixture
def recipe(tmp_path: Path, marked_folder: Path) -> Path:
    rows = [{"prompt": "Prove x [b]≥[/b] 0", "proof": "Let n = 1.\x1b[31m"}, {"prompt": "P", "proof": "Q"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{hf: {marked_folder}, layers: 4}}\noptimizer: {{lr: 1e-3}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, cache: {tmp_path}/cache, prompts_per_step: 2,"
        " max_length: 64, tokens_per_microbatch: 128}\n"
    )
    return path


def test_what_is_trained_on_is_marked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(recipe)) == 0
    out = capsys.readouterr().out
    assert "2 documents" in out
    assert "in 1 microbatches of 64 tokens filled to" in out
    assert (
        "Prove x [b]≥[/b] 0<|im_end|>\n<|im_start|>assistant\n«Let n = 1.\N{REPLACEMENT CHARACTER}[31m<|im_end|>»\n"
        in out
    )
    assert "«Q<|im_end|>»" in out
    assert out.count("«") == 2
    assert "\x1b" not in out
    assert "padding: positions" in out
    assert "warning" not in out


def test_on_a_terminal_it_is_coloured(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run("--config", str(recipe), "data.prompts_per_step=1", "--step", "1") == 0
    out = capsys.readouterr().out
    assert "«" not in out
    assert "\x1b[1;32m" in out
    assert "\x1b[31m" not in out


def test_a_turn_end_at_which_generation_would_not_stop(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_byte_level(tmp_path / "base", PLAIN)
    (base / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )
    assert run("--config", str(recipe), f"data.tokenizer={base}", "data.assistant_mask=prefix") == 0
    assert "warning: turns end with '<|im_end|>', where generation does not stop (it stops at '<|endoftext|>')" in (
        capsys.readouterr().out
    )


def test_the_tokenizer_of_a_checkpoint(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(recipe.read_text())
    hf = Path(settings["model"].pop("hf"))
    make_checkpoint(tmp_path / "model", vocab_size=400)
    for path in hf.iterdir():
        shutil.copy(path, tmp_path / "model")
    checkpoint = tmp_path / "megatron"
    checkpoint.mkdir()
    info = CheckpointInfo("Qwen3ForCausalLM", "float32", 400, tp=1, pp=1, ep=1)
    checkpoint_folder.write_description(checkpoint, info, tmp_path / "model")
    checkpoint_folder.mark_complete(checkpoint)
    recipe.write_text(yaml.safe_dump(settings))
    assert run("--config", str(recipe), f"model.megatron={checkpoint}") == 0
    assert "«Q<|im_end|>»" in capsys.readouterr().out


def test_mistakes(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sed: unknown setting; did you mean 'seed'"):
        run("--config", str(recipe), "data.sed=1")
    with pytest.raises(UserError, match="no such settings file"):
        run("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"neither data\.tokenizer, model\.hf nor model\.megatron is set"):
        run("--config", str(recipe), "model={}")
    with pytest.raises(UserError, match="--step -1"):
        run("--config", str(recipe), "--step", "-1")
