"""The gate says where trainer and engine differ, and stops the run when they differ by too much."""

import numpy as np
import pytest

from qedmeg.rollout import gate

TRAINER = [np.array([-1.0, -2.0, -3.0], np.float32), np.array([-0.5], np.float32), np.array([-4.0, -0.25], np.float32)]


def _engine(prompt: int, index: int, value: float) -> list[np.ndarray]:
    arrays = [array.copy() for array in TRAINER]
    arrays[prompt][index] = value
    return arrays


def test_where_they_differ_most():
    engine = _engine(2, 1, -0.375)
    engine[0][0] = -1.0625
    found = gate.greatest_difference(TRAINER, engine, tolerance=0.1)
    assert found == gate.Difference(0.125, prompt=2, token=2, trainer=-0.25, engine=-0.375, beyond=1 / 6)
    assert gate.check("local", 3, TRAINER, engine, tolerance=0.125) == gate.greatest_difference(TRAINER, engine, 0.125)


def test_first_prompt_and_first_token():
    found = gate.greatest_difference(TRAINER, _engine(0, 0, -1.5), tolerance=0.1)
    assert (found.prompt, found.token, found.greatest) == (0, 1, 0.5)


def test_the_error_names_everything():
    with pytest.raises(gate.GateFailed) as raised:
        gate.check("http://127.0.0.1:8000", 7, TRAINER, _engine(1, 0, -0.75), tolerance=0.1)
    for part in ("http://127.0.0.1:8000", "version 7", "prompt 1", "token 1", "-0.5 ", "-0.75 ", "0.1 (", "17%"):
        assert part in str(raised.value)
    assert "precision" in str(raised.value)


def test_other_weights_are_suspected_where_most_tokens_differ():
    with pytest.raises(gate.GateFailed, match="the transfer of this version reached it"):
        gate.check("local", 1, TRAINER, [array - 1 for array in TRAINER], tolerance=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(value):
    with pytest.raises(gate.GateFailed, match=r"Look at the engine's weights"):
        gate.check("local", 1, TRAINER, _engine(0, 2, value), tolerance=1e9)
    with pytest.raises(gate.GateFailed, match=r"Look at the trainer's weights"):
        gate.check("local", 1, _engine(0, 2, value), _engine(0, 2, value), tolerance=1e9)


def test_other_prompts_are_no_comparison():
    for engine in (TRAINER[:2], [TRAINER[0][:2], *TRAINER[1:]], []):
        with pytest.raises(ValueError, match="other prompts"):
            gate.check("local", 1, TRAINER, engine, tolerance=1.0)
    with pytest.raises(ValueError, match="other prompts"):
        gate.check("local", 1, [], [], tolerance=1.0)
