"""eval/embedded.py: mistakes are told before a model is loaded."""

import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation import embedded
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--model": "nowhere"}, r"nowhere/config\.json: no such file"),
        ({"--out": "nowhere/score.json"}, r"--out: .*nowhere: no such folder"),
        ({"--problems": "0"}, "--problems: 0 is less than 1"),
        ({"--samples": "0"}, "--samples: 0 is less than 1"),
        ({"--max-length": "16385"}, "--max-length: 16385 is longer than the model's context of 16384"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, options, message):
    make_checkpoint(tmp_path / "model")
    given = {"--model": tmp_path / "model", "--out": tmp_path / "score.json"} | options
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embedded.py", *(str(word) for pair in given.items() for word in pair)])
    with pytest.raises(UserError, match=message):
        embedded.main()
    assert not (tmp_path / "score.json").exists()
