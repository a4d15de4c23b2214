"""Where weights come from: recorded by the runs, or found by what older runs have left, and unknown where neither."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf
from qedmeg.conversion.stored import open_model, weights_digest
from qedmeg.lineage.files import packages, sha256
from qedmeg.lineage.origin import AS_FOUND, origin
from qedmeg.lineage.stages import write
from tests import sft_runs
from tests.release.conftest import QUICK, lineage


def _digest(folder):
    with open_model(folder) as stored:
        return weights_digest(stored)


def _change(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_two_stages_as_recorded(two_stages):
    first, last = two_stages / "first", two_stages / "second/checkpoints/step_00000003"
    found = origin(last)
    assert [(stage.kind, stage.name, stage.step) for stage in found] == [
        ("model", "model", None),
        ("SFT", "run", 2),
        ("SFT", "second", 3),
    ]
    assert [stage.weights for stage in found] == [_digest(two_stages / "model"), _digest(first), _digest(last)]
    (start,) = found[2].starts
    assert start.packages == packages()
    assert start.packages["torch"] == torch.__version__
    assert start.settings_sha256 == sha256(two_stages / "second" / "config.yaml")
    assert [(file.name, file.rows) for file in start.data] == [("more.jsonl", 80)]


def test_it_needs_none_of_the_folders_before(stages, tmp_path):
    shutil.copytree(stages / "second/checkpoints/step_00000003", tmp_path / "alone")
    expected = origin(stages / "second/checkpoints/step_00000003")
    shutil.rmtree(stages)
    assert origin(tmp_path / "alone") == expected


def _forget(stages):
    for path in stages.rglob("lineage.json"):
        path.unlink()
    (stages / "first/report.json").write_text(
        json.dumps({"kind": "megatron_to_hf", "first": str(stages / "run/checkpoints/step_00000002")})
    )


def test_two_stages_without_a_record(stages):
    recorded = origin(stages / "second/checkpoints/step_00000003")
    _forget(stages)
    found = origin(stages / "second/checkpoints/step_00000003")
    for one, other in zip(found, recorded, strict=True):
        assert (one.kind, one.name, one.step, one.weights) == (other.kind, other.name, other.step, other.weights)
        assert [start.data for start in one.starts] == [start.data for start in other.starts]
    assert [stage.notes for stage in found] == [("Where it comes from is unknown.",), (AS_FOUND,), (AS_FOUND,)]
    assert found[1].starts[0].packages == {}


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda stages: _change(stages / "first"), "Where it comes from is unknown."),
        (lambda stages: shutil.rmtree(stages / "run"), "Where it comes from is unknown."),
        (lambda stages: (stages / "first/report.json").unlink(), "Where it comes from is unknown."),
        (lambda stages: (stages / "first/report.json").write_text("[]"), "Where it comes from is unknown."),
        (lambda stages: shutil.rmtree(stages / "first"), "It is not there any more"),
    ],
)
def test_a_link_that_does_not_hold_is_unknown(stages, damage, note):
    _forget(stages)
    damage(stages)
    found = origin(stages / "second/checkpoints/step_00000003")
    assert [(stage.kind, stage.name) for stage in found] == [("model", "first"), ("SFT", "second")]
    assert found[0].notes[0].startswith(note)


def test_a_record_of_other_weights_or_a_damaged_one_is_not_believed(stages):
    last = stages / "second/checkpoints/step_00000003"
    write(stages / "model", origin(last))
    (only,) = origin(stages / "model")
    assert only.weights == _digest(stages / "model")
    assert only.notes == ("Its lineage.json is of other weights: where it comes from is unknown.",)
    (stages / "model/lineage.json").write_text('{"stages": []}')
    (only,) = origin(stages / "model")
    assert only.notes == ("Its lineage.json cannot be read: where it comes from is unknown.",)


def test_conversion_carries_it_and_says_when_it_rounds(two_stages, tmp_path):
    recorded = lineage(two_stages / "first")
    hf_to_megatron(two_stages / "first", tmp_path / "same", tp=2, checks=QUICK)
    assert lineage(tmp_path / "same") == recorded
    assert _digest(tmp_path / "same") == _digest(two_stages / "first")
    hf_to_megatron(two_stages / "first", tmp_path / "half", dtype=torch.bfloat16, checks=QUICK)
    assert lineage(tmp_path / "half")[-1]["notes"] == ["Rounded to bfloat16 afterwards."]
    assert not (tmp_path / "half" / "hf" / "lineage.json").exists()
    megatron_to_hf(tmp_path / "half", tmp_path / "back", checks=QUICK)
    found = origin(tmp_path / "back")
    assert (found[-1].name, found[-1].weights) == ("run", _digest(tmp_path / "back"))


def test_a_run_that_goes_on_records_what_changed(ranks, stages):
    more = [f"run_dir={stages}/second", f"model.hf={stages}/first", f"data.train={stages}/more.jsonl", "max_steps=5"]
    assert ranks(sft_runs.train, 1, stages / "sft.yaml", more) == [0]
    found = origin(stages / "second/checkpoints/step_00000005")
    assert [start.step for start in found[-1].starts] == [0, 3]
    assert found[-1].settings["max_steps"] == 5
    assert found[:-1] == origin(stages / "second/checkpoints/step_00000003")[:-1]


def test_a_model_of_the_hubs_cache_is_known_by_its_place(two_stages, tmp_path):
    folder = tmp_path / "models--org--base-1" / "snapshots" / "0123abcd"
    shutil.copytree(two_stages / "model", folder)
    (only,) = origin(folder)
    assert (only.name, only.notes) == ("org/base-1", ("From the hub, revision 0123abcd.",))
