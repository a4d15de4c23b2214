"""Validations in the real rollout process, with scripted engines (see `scripted.py`): what is kept and asked again."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qedmeg.config import GraderConfig, JudgeConfig
from qedmeg.config_rl import GRPOConfig, RolloutConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.data.problems import generate
from qedmeg.errors import UserError
from qedmeg.evaluation.results import Results
from qedmeg.evaluation.stats import summaries
from qedmeg.rollout import client as client_module
from qedmeg.rollout.client import RolloutClient, RolloutFailed, WeightsNeeded
from qedmeg.rollout.sample import Batch
from qedmeg.rollout.validation import VALIDATION_FILE
from qedmeg.rollout.validation_plan import read_validation
from tests.rollout.collecting import Setting, content, make_setting
from tests.rollout.scripted import COMMAND, GENERATED_FILE, GRADED_FILE, Script, lines

PROBLEMS, SAMPLES = 12, 2
ATTEMPTS = PROBLEMS * (SAMPLES + 1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


def config_of(setting: Setting, run_dir: Path, **validation: Any) -> GRPOConfig:
    """Validated on the problems that the scripted engines know."""
    given = {"benchmark": str(setting.rows), "samples": SAMPLES, "greedy": True} | validation
    given.setdefault("scaffold_settings", {"prompt": "{problem}"})
    return setting.config(run_dir, max_failure_rate=0.9).model_copy(update={"validation": ValidationConfig(**given)})


def started(setting: Setting, config: GRPOConfig, script: Script) -> RolloutClient:
    script.write(config.run_dir)
    return RolloutClient(config, config.run_dir, setting.model, command=COMMAND)


def publish(client: RolloutClient, version: int) -> None:
    client.pause()
    client.resume(version)


def stats_of(run_dir: Path, name: str) -> Any:
    """What eval/stats.py tells of a run."""
    with closing(Results(run_dir / VALIDATION_FILE)) as results:
        return summaries(results, [name])[0]


def test_the_score_is_that_of_the_table_and_no_rollout_changes(setting: Setting, tmp_path: Path) -> None:
    batches: dict[bool, list[Batch]] = {False: [], True: []}
    for validated in batches:
        config = config_of(setting, tmp_path / f"{validated}")
        config = config if validated else config.model_copy(update={"validation": None})
        with started(setting, config, Script(failing=0.2)) as client:
            for step in range(2):
                publish(client, step)
                if validated:
                    found = client.validate(step, f"hash {step}")
                    sampled, greedy = (stats_of(config.run_dir, f"step {step}{half}") for half in ("", " greedy"))
                    assert found["score"] == sampled.whole.mean
                    assert found["greedy"] == greedy.whole.mean
                    assert (found["score_low"], found["score_high"]) == (
                        sampled.whole.interval.low,
                        sampled.whole.interval.high,
                    )
                    assert found["score_repeated_low"] == sampled.whole.repeat_interval.low
                    failed = sum(sum(one.whole.failed.values()) for one in (sampled, greedy))
                    assert found["failed_grades"] == failed > 0
                    assert found["graded"] + failed == ATTEMPTS
                    assert found["missing"] == 0
                batches[validated].append(client.batch(step))
            if not validated:
                with pytest.raises(RolloutFailed, match="no such method: validate"):
                    client.validate(1, "")
    assert content(batches[True]) == content(batches[False])


@pytest.mark.parametrize(
    "kill", [("add_attempt", 7, "before"), ("add_attempt", ATTEMPTS, "before"), ("add_grade", 9, "before")]
)
def test_killed_in_a_validation_it_goes_on_and_asks_nothing_twice(
    setting: Setting, tmp_path: Path, kill: tuple[str, int, str]
) -> None:
    config = config_of(setting, tmp_path / "run")
    with started(setting, config, Script(generate_seconds=0.01, kill_results=kill)) as client:
        publish(client, 0)
        with pytest.raises(RolloutFailed, match="ended with status -9"):
            client.validate(0, "hash")
    with closing(Results(config.run_dir / VALIDATION_FILE)) as results:
        runs = [run.name for run in results.runs()]
        kept = sum(len(results.calls(run, one.id, n)) for run in runs for one in results.problems(run) for n in (0, 1))
        graded = sum(len(results.grades(run)) for run in runs)
    before = {name: len(lines(config.run_dir / name)) for name in (GENERATED_FILE, GRADED_FILE)}
    assert kept >= (kill[1] if kill[0] == "add_attempt" else PROBLEMS)
    with started(setting, config, Script()) as client:
        publish(client, 0)
        found = client.validate(0, "hash")
        assert len(lines(config.run_dir / GRADED_FILE)) - before[GRADED_FILE] == ATTEMPTS - graded
        asked = lines(config.run_dir / GENERATED_FILE)
        assert len(asked) - before[GENERATED_FILE] == ATTEMPTS - kept
        assert client.validate(0, "hash") | {"seconds": 0} == found | {"seconds": 0}
        assert lines(config.run_dir / GENERATED_FILE) == asked
    alone = config_of(setting, tmp_path / "alone")
    with started(setting, alone, Script()) as client:
        publish(client, 0)
        assert client.validate(0, "hash") | {"seconds": 0} == found | {"seconds": 0}


def test_other_weights_settings_or_graders_are_validated_anew(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of(setting, tmp_path / "run", greedy=False)
    asked = Counter[str]()
    for weights, samples in (("a", 1), ("a", 2), ("b", 2), ("b", 1)):
        one = config.model_copy(update={"validation": config.validation.model_copy(update={"samples": samples})})
        with started(setting, one, Script()) as client:
            publish(client, 0)
            found = client.validate(0, weights)
            assert found["graded"] == PROBLEMS * samples
        asked.update({f"{weights}{samples}": len(lines(config.run_dir / GENERATED_FILE)) - asked.total()})
    # one more attempt at each problem is one more; fewer are another score
    assert asked == {"a1": PROBLEMS, "a2": PROBLEMS, "b2": 2 * PROBLEMS, "b1": PROBLEMS}
    assert capfd.readouterr().err.count("step 0 was validated with other weights or settings") == 2


def test_engines_that_were_started_anew_are_sent_weights_and_the_rest_is_asked(
    setting: Setting, tmp_path: Path
) -> None:
    config = config_of(setting, tmp_path / "run")
    with started(setting, config, Script(generate_seconds=1.0, lose_weights_at=5)) as client:
        publish(client, 0)
        with pytest.raises(WeightsNeeded):
            client.validate(0, "hash")
        asked = len(lines(config.run_dir / GENERATED_FILE))
        publish(client, 0)
        assert client.validate(0, "hash")["graded"] == ATTEMPTS
        assert len(lines(config.run_dir / GENERATED_FILE)) - asked <= ATTEMPTS - 5


def test_weights_that_change_meanwhile_end_it(setting: Setting, tmp_path: Path) -> None:
    config = config_of(setting, tmp_path / "run")
    with started(setting, config, Script()) as client:
        publish(client, 0)
        with pytest.raises(RolloutFailed, match="weights changed within version 1"):
            client.validate(1, "hash")


def test_engines_that_answer_nothing_end_it(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(setting, tmp_path / "run")
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"generate_seconds": 0.4})})
    monkeypatch.setattr(client_module, "SECONDS_TO_CLOSE", 10.0)
    with started(setting, config, Script(generate_seconds=1000.0)) as client:
        publish(client, 0)
        with pytest.raises(RolloutFailed, match=r"validation of step 0: the engines answered nothing for \d+ s"):
            client.validate(0, "hash")
        client.pause()  # it lives on, and nothing is left of what was asked


def test_a_scaffold_of_several_calls_is_validated(setting: Setting, tmp_path: Path) -> None:
    config = config_of(
        setting,
        tmp_path / "run",
        scaffold="reasoning_cache",
        scaffold_settings={"rounds": 2},
        max_tokens=300,
        max_length=16_000,
        greedy=False,
        samples=1,
    )
    with started(setting, config, Script()) as client:
        publish(client, 0)
        assert client.validate(0, "hash")["graded"] == PROBLEMS
    assert len(lines(config.run_dir / GENERATED_FILE)) == 3 * PROBLEMS


RUBRIC = {"id": "p", "problem": "Prove it.", "rubric": "7 for a proof"}


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        ({"benchmark": "embeded"}, None, r"^validation\.benchmark: 'embeded' .* did you mean 'embedded'"),
        ({"benchmark": "imo-proofbench"}, None, r"give validation\.data with proofbench_v2\.csv"),
        ({"benchmark": "embedded", "data": "x"}, None, r"leave validation\.data x out"),
        ({"scaffold": "rsaa"}, None, r"^validation\.scaffold: no scaffold 'rsaa'; did you mean 'rsa'"),
        ({"scaffold_settings": {"round": 2}}, None, r"^validation\.scaffold_settings: round: unknown setting"),
        ({"max_tokens": 16384}, None, r"^validation\.max_tokens: 16384: .* context has 16384; lower it by \d+"),
        ({"max_length": 300}, None, r"^validation\.max_length: 300 is not between the \d+ tokens"),
        ({"max_length": 20_000}, None, r"^validation\.max_length: 20000 is not between .* context of 16384"),
        ({}, [RUBRIC], r"^grader\.judges: none, and validation\.benchmark .* problem 'p'; set a judge"),
        ({}, [RUBRIC | {"problem": "Prove <|im_end|> it."}], r"problem 'p' of validation\.benchmark: .* control token"),
    ],
)
def test_mistakes_are_told_by_their_setting(
    setting: Setting, tmp_path: Path, given: dict[str, Any], rows: Any, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation = ValidationConfig(**({"benchmark": str(path if rows else setting.rows)} | given))
    judge = JudgeConfig(base_url="http://localhost:1/v1", model="judge")
    grader = GraderConfig(judges=(judge,) if "im_end" in str(rows) else ())
    with pytest.raises(UserError, match=message):
        read_validation(validation, RolloutConfig(max_tokens=400), grader, setting.tokenizer, 16_384)


def test_embedded_problems_are_the_held_out_ones_of_the_tables(setting: Setting) -> None:
    validation = ValidationConfig(benchmark="embedded", problems=5, seed=3)
    rollout = RolloutConfig(max_tokens=400)
    plan, longest = read_validation(validation, rollout, GraderConfig(), setting.tokenizer, 16_384)
    assert [one.problem for one in plan.problems] == generate("heldout", 5, 3)
    statements = [len(setting.tokenizer.encode(one.statement)) for one in plan.problems]
    assert longest > max(statements) + 400
    longer = validation.model_copy(update={"max_length": 9000})
    assert read_validation(longer, rollout, GraderConfig(), setting.tokenizer, 16_384)[1] == 9000
