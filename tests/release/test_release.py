"""The folder of a release: what is in it, that it works, and when there is none."""

import hashlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from qedmeg.config import SFTConfig
from qedmeg.conversion import convert, engines
from qedmeg.lineage.stages import masked
from qedmeg.model import safetensors_file
from qedmeg.release import build
from qedmeg.settings import load_config
from tests.release.conftest import edit, environment, texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(two_stages, tmp_path_factory) -> Path:
    """A release with every check but vLLM's, which is as if it were not installed."""
    out = tmp_path_factory.mktemp("out") / "my-model"
    limits = "## Known\n\nIt guesses. `---`\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "has_vllm", lambda: False)
        request = build.Request(
            two_stages / "second", out, "my-model", license="mit", base_model="org/base", limits=limits
        )
        assert build.build(request).equal
    return out


def test_what_is_in_it(made, two_stages):
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "README.md", "lineage.json", "verify.json", "verify.md", "SHA256SUMS"),
        *("settings/2-sft-run.yaml", "settings/3-sft-second.yaml"),
    }
    sums = dict(reversed(line.split("  ")) for line in (made / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in names - {"SHA256SUMS"}}
    assert not list(made.parent.glob("*.partial"))


def test_every_check_was_made(made):
    verified = json.loads((made / "verify.json").read_text())
    assert {check["name"]: check["status"] for check in verified["checks"]} == {
        **dict.fromkeys(("tensors", "config", "tokenizer", "logits", "round trip"), "equal"),
        "vllm": "not run",
    }
    assert "- The check `vllm` could not be made." in (made / "README.md").read_text()
    assert verified["first"] == "second, step_00000003"


def test_the_header_and_the_page(made):
    found = ModelCard.load(made / "README.md")
    assert found.data.to_dict() == {
        "license": "mit",
        "base_model": "org/base",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mathematics", "theorem-proving", "qedmeg", "sft"],
        "model_name": "my-model",
    }
    assert "**No evaluation was given for this release.**" in found.text
    assert found.text.rstrip().endswith("## Known\n\nIt guesses. `---`")


def test_data_and_settings(made, two_stages):
    page = (made / "README.md").read_text()
    for name, rows in (("rows.jsonl", 40), ("more.jsonl", 80)):
        checksum = hashlib.sha256((two_stages / name).read_bytes()).hexdigest()
        assert re.search(rf"\| {name} \| {rows} \| `{checksum}` \|", page)
    settings = load_config(SFTConfig, made / "settings" / "3-sft-second.yaml")
    assert (str(settings.run_dir), str(settings.model.hf), settings.data.train) == ("second", "first", "more.jsonl")
    assert settings.max_steps == 3


def test_nothing_tells_of_this_machine(made, two_stages):
    whole = texts(made)
    for path in (two_stages, made.parent, ROOT, Path.home(), Path(sys.executable).parent):
        assert str(path) not in whole
    assert os.uname().nodename not in whole


def test_generation_config(made):
    config = GenerationConfig.from_pretrained(made)
    tokens = json.loads((made / "tokenizer.json").read_text())["added_tokens"]
    (end,) = (token["id"] for token in tokens if token["content"] == "<|im_end|>")
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 1.0, 1.0, 0)
    assert config.max_new_tokens == 64
    assert end in (config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])


def test_the_snippet_proves_something(made, monkeypatch, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), re.DOTALL)
    (path := made.parent / "snippet.py").write_text(snippets[0])
    monkeypatch.chdir(made.parent)
    torch.manual_seed(0)
    answer = runpy.run_path(str(path))["answer"]
    assert 1 <= len(answer) <= 64
    compile(snippets[1], "vllm", "exec")


def test_weights_are_the_checkpoints(made, two_stages, tmp_path):
    report = convert.megatron_to_hf(two_stages / "second" / "checkpoints" / "step_00000003", tmp_path / "hf", checks=())
    assert report.equal
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    found = load_file(made / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# --- refused --------------------------------------------------------------------------------------------------------


def _nothing_is_left(out: Path) -> None:
    assert not list(out.parent.glob(f"{out.name}*"))


@pytest.mark.usefixtures("quick")
def test_a_tensor_that_went_wrong_on_the_way(release, two_stages, tmp_path, monkeypatch):
    write = safetensors_file.Writer.write_rows

    def wrong(self, name, start, rows):
        write(self, name, start, rows + 1 if name == "model.norm.weight" else rows)

    monkeypatch.setattr(safetensors_file.Writer, "write_rows", wrong)
    ended = release("--run", two_stages / "second", "--out", tmp_path / "out")
    assert ended.status == 1
    assert "1 of 20 differ, first decoder.final_layernorm.weight" in ended.out
    assert "not released" in ended.out
    _nothing_is_left(tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_a_round_trip_that_goes_wrong(release, two_stages, tmp_path, monkeypatch):
    def wrong(hf, *arguments, **options):
        tensors = load_file(hf / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        from safetensors.torch import save_file

        save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
        return convert.hf_to_megatron(hf, *arguments, **options)

    monkeypatch.setattr(build, "hf_to_megatron", wrong)
    ended = release("--run", two_stages / "second", "--out", tmp_path / "out")
    assert ended.status == 1
    assert re.search(r"round trip +differs +1 tensors differ, first decoder\.final_layernorm\.weight", ended.out)
    _nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", 9], r"--step: .*second has no complete checkpoint of step 9; it has 3"),
        (["--run", "{folder}/model"], r"model: holds no config.yaml: not the folder of a training run"),
        (["--license", "My own!"], r"--license: 'My own!'"),
        (["--limits", "{folder}/none.md"], r"--limits: .*none\.md: no such file"),
        (["--evaluated", "mine"], r"--results, --evaluated: give both"),
        (["--results", "{folder}/r.sqlite", "--evaluated", "mine"], r"r\.sqlite: no such file of results"),
        (["--private"], r"--private: is of --push"),
        (["--out", "{folder}/model"], r"model: holds other files"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_options_that_do_not_fit(release, two_stages, tmp_path, options, message):
    given = [str(option).format(folder=two_stages) for option in options]
    ended = release("--run", two_stages / "second", "--out", tmp_path / "out", *given)
    assert ended.status == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)
    _nothing_is_left(tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_a_release_is_replaced_only_when_asked(release, two_stages, tmp_path):
    arguments = ("--run", two_stages / "second", "--out", tmp_path / "out")
    assert release(*arguments).status == 0
    ended = release(*arguments)
    assert ended.status == 2
    assert "is there and complete; give another folder, or --overwrite" in ended.err
    assert release(*arguments, "--overwrite", "--name", "another").status == 0
    assert "# another" in (tmp_path / "out" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("quick")
def test_killed_in_the_middle(release, two_stages, tmp_path):
    """Killed just before it gets its name there is no folder of that name; the next one begins anew."""
    program = (
        "import os, signal; from qedmeg.release import build, command; build.CHECKS = ('tensors',)\n"
        "was = build.write_sums\n"
        "def write_sums(folder):\n    was(folder)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "build.write_sums = write_sums; command.main()"
    )
    out = tmp_path / "out"
    arguments = ("--run", str(two_stages / "second"), "--out", str(out))
    command = [sys.executable, "-c", program, *arguments]
    killed = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert (tmp_path / "out.partial" / "SHA256SUMS").is_file()  # it was all but named
    assert release(*arguments).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("quick")
def test_paths_and_keys_are_kept_out(release, stages, tmp_path, monkeypatch):
    edit(stages / "second/checkpoints/step_00000003/hf/config.json", _name_or_path=str(stages / "model"))
    limits = tmp_path / "limits.md"
    arguments = ("--run", stages / "second", "--out", tmp_path / "out", "--limits", limits)
    limits.write_text("Nothing.")
    assert release(*arguments).status == 0
    assert str(stages) not in texts(tmp_path / "out")
    limits.write_text(f"See {tmp_path}/notes.")
    ended = release(*arguments, "--overwrite")
    assert (ended.status, "README.md: would hold the path" in ended.err) == (2, True)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    limits.write_text("My token is hf_0123456789.")
    ended = release(*arguments, "--overwrite")
    assert (ended.status, "hf_0123456789" in ended.err) == (2, False)
    assert "README.md: would hold the value of the environment variable HF_TOKEN" in ended.err


@pytest.mark.usefixtures("quick")
def test_the_template_of_the_training_is_released(release, stages, tmp_path):
    """Not the model's own, which the checkpoint has."""
    template = (stages / "model" / "chat_template.jinja").read_text() + "{# mine #}"
    (stages / "mine.jinja").write_text(template)
    settings = stages / "second" / "config.yaml"
    content = yaml.safe_load(settings.read_text())
    content["data"]["chat_template"] = str(stages / "mine.jinja")
    settings.write_text(yaml.safe_dump(content))
    assert release("--run", stages / "second", "--out", tmp_path / "out").status == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    (stages / "mine.jinja").unlink()
    ended = release("--run", stages / "second", "--out", tmp_path / "other")
    assert (ended.status, "data.chat_template) is not there any more" in ended.err) == (2, True)


def test_masked_settings():
    settings = {
        "run_dir": "/home/me/runs/x",
        "data": {"train": "org/data", "validation": "../rows.jsonl", "prompt": "{problem} a/b"},
        "rollout": {"servers": ["http://node7:8000", "http://node8:8000"]},
        "grader": {
            "judges": [
                {"base_url": "http://10.0.0.1:8000/v1", "model": "org/judge", "api_key_env": "MY_KEY"},
                {"base_url": "", "model": "", "serve": {"folder": "/home/me/judge"}},
            ]
        },
    }
    assert masked(settings) == {
        "run_dir": "x",
        "data": {"train": "org/data", "validation": "rows.jsonl", "prompt": "{problem} a/b"},
        "rollout": {"servers": ["http://masked-1.invalid", "http://masked-2.invalid"]},
        "grader": {
            "judges": [
                {"base_url": "http://masked-1.invalid", "model": "org/judge", "api_key_env": None},
                {"base_url": "", "model": "", "serve": {"folder": "judge"}},
            ]
        },
    }


@pytest.mark.usefixtures("quick")
def test_a_base_models_end_and_that_of_the_template_both_stop(release, stages, tmp_path):
    """A base model's own end is often not what its chat template ends an answer with."""
    hf = stages / "second/checkpoints/step_00000003/hf"
    edit(hf / "tokenizer_config.json", eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        edit(hf / name, eos_token_id=None)
    assert release("--run", stages / "second", "--out", tmp_path / "out").status == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|endoftext|>", "<|im_end|>"]
