"""Validations with scripted engines (see `scripted.py`): what they tell, what is kept, and what is asked again."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
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
from qedmeg.grading.graders import Graders
from qedmeg.rollout import validation
from qedmeg.rollout.protocol import ProcessConfig, WeightsNeeded
from qedmeg.rollout.validation import VALIDATION_FILE, Validator
from qedmeg.rollout.validation_plan import read_validation
from tests.rollout.collecting import Setting, make_setting
from tests.rollout.scripted import (
    GENERATED_FILE,
    GRADED_FILE,
    Script,
    ScriptedFleet,
    ScriptedGrader,
    appender,
    kill_at,
    lines,
    problems,
)

PROBLEMS, SAMPLES = 12, 2
ATTEMPTS = PROBLEMS * (SAMPLES + 1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


def config_of(setting: Setting, run_dir: Path, **validation: Any) -> GRPOConfig:
    """Validated on the problems that the scripted engines know."""
    run_dir.mkdir(exist_ok=True)
    given = {"benchmark": str(setting.rows), "samples": SAMPLES, "greedy": True} | validation
    given.setdefault("scaffold_settings", {"prompt": "{problem}"})
    return setting.config(run_dir, generate_seconds=0.4).model_copy(update={"validation": ValidationConfig(**given)})


@asynccontextmanager
async def validating(
    setting: Setting, config: GRPOConfig, script: Script, said: list[str] | None = None
) -> AsyncIterator[tuple[Validator, ScriptedFleet]]:
    """A validator over the run folder, as the rollout process has it, whose engines have weights of version 0."""
    assert config.validation is not None
    fleet = ScriptedFleet(
        script,
        appender(config.run_dir / GENERATED_FILE),
        setting.tokenizer,
        {one.statement: one for one in problems()},
    )
    grader = ScriptedGrader(script, appender(config.run_dir / GRADED_FILE))
    told = ProcessConfig(
        **{name: getattr(config, name) for name in ("run_dir", "data", "rollout", "grader", "advantage", "validation")},
        model_folder=setting.model,
    )
    plan, longest = read_validation(config.validation, config.rollout, config.grader, setting.tokenizer, 16_384)
    say = ([] if said is None else said).append
    graders = Graders(config.grader, grader)
    with closing(Validator(told, plan, longest, setting.tokenizer, fleet, graders, say)) as validator:
        await fleet.resume(0)
        yield validator, fleet


def validated(
    setting: Setting, config: GRPOConfig, script: Script, *, weights: str = "hash", said: list[str] | None = None
) -> dict[str, float]:
    """What is logged of version 0, without the seconds."""

    async def run() -> dict[str, float]:
        async with asyncio.timeout(30), validating(setting, config, script, said) as (validator, _):
            return await validator.validate(0, weights)

    return asyncio.run(run()) | {"seconds": 0.0}


def count(config: GRPOConfig, name: str) -> int:
    """Lines of what engines or graders were asked."""
    return len(lines(config.run_dir / name))


def test_what_is_logged_is_what_the_table_tells(setting: Setting, tmp_path: Path) -> None:
    config, said = config_of(setting, tmp_path / "run"), list[str]()
    found = validated(setting, config, Script(failing=0.2), said=said)
    with closing(Results(config.run_dir / VALIDATION_FILE)) as results:
        sampled, greedy = summaries(results, ["step 0", "step 0 greedy"])
    assert sampled.whole.interval is not None
    assert sampled.whole.repeat_interval is not None
    assert (found["score"], found["greedy"]) == (sampled.whole.mean, greedy.whole.mean)
    bounds = sampled.whole.interval, sampled.whole.repeat_interval
    assert [found[f"score{kind}_low"] for kind in ("", "_repeated")] == [bound.low for bound in bounds]
    assert [found[f"score{kind}_high"] for kind in ("", "_repeated")] == [bound.high for bound in bounds]
    failed = sum(sum(one.whole.failed.values()) for one in (sampled, greedy))
    assert found["failed_grades"] == failed > 0
    assert found["graded"] + failed == ATTEMPTS == count(config, GENERATED_FILE)
    assert (found["missing"], found["problems"]) == (0, sampled.whole.problems)
    assert found["tokens"] == sampled.whole.cost.tokens_per_problem
    assert said[-1].startswith(f"step 0: validation {sampled.whole.mean:.2f} [")
    assert f"{failed} grades failed" in said[-1]


@pytest.mark.parametrize(
    "kill", [("add_attempt", 7, "before"), ("add_attempt", ATTEMPTS, "before"), ("add_grade", 9, "before")]
)
def test_killed_in_a_validation_it_goes_on_and_asks_nothing_twice(
    setting: Setting, tmp_path: Path, kill: tuple[str, int, str]
) -> None:
    config = config_of(setting, tmp_path / "run")
    child = os.fork()
    if child == 0:
        try:
            kill_at(*kill, of=Results)
            validated(setting, config, Script(generate_seconds=0.01))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with closing(Results(config.run_dir / VALIDATION_FILE)) as results:
        runs = [run.name for run in results.runs()]
        kept = sum(len(results.calls(run, one.id, n)) for run in runs for one in results.problems(run) for n in (0, 1))
        graded = sum(len(results.grades(run)) for run in runs)
    before = {name: count(config, name) for name in (GENERATED_FILE, GRADED_FILE)}
    assert kept >= (kill[1] if kill[0] == "add_attempt" else PROBLEMS)
    found = validated(setting, config, Script())
    assert count(config, GRADED_FILE) - before[GRADED_FILE] == ATTEMPTS - graded
    assert count(config, GENERATED_FILE) - before[GENERATED_FILE] == ATTEMPTS - kept
    asked = count(config, GENERATED_FILE)
    assert validated(setting, config, Script()) == found
    assert count(config, GENERATED_FILE) == asked
    assert validated(setting, config_of(setting, tmp_path / "alone"), Script()) == found


def test_other_weights_or_settings_are_validated_anew(setting: Setting, tmp_path: Path) -> None:
    said, asked = list[str](), []
    for weights, given in (("a", {"samples": 1}), ("a", {"samples": 2}), ("b", {"samples": 2}), ("b", {"samples": 1})):
        config = config_of(setting, tmp_path / "run", greedy=False, **given)
        before = count(config, GENERATED_FILE)
        assert validated(setting, config, Script(), weights=weights, said=said)["graded"] == PROBLEMS * given["samples"]
        asked.append(count(config, GENERATED_FILE) - before)
    # one more attempt at each problem is one more; fewer are another score
    assert asked == [PROBLEMS, PROBLEMS, 2 * PROBLEMS, PROBLEMS]
    config = config_of(setting, tmp_path / "run", greedy=False, samples=1, temperature=0.5)
    validated(setting, config, Script(), weights="b", said=said)
    anew = "step 0 was validated with other weights or settings, and is validated anew"
    assert said.count(anew) == 3


def test_engines_that_were_started_anew_are_sent_weights_and_the_rest_is_asked(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SECONDS_BETWEEN_LOOKS", 0.05)
    config = config_of(setting, tmp_path / "run")

    async def scene() -> None:
        script = Script(generate_seconds=0.2, lose_weights_at=5)
        async with asyncio.timeout(30), validating(setting, config, script) as (validator, fleet):
            with pytest.raises(WeightsNeeded):
                await validator.validate(0, "hash")
            given, asked = fleet.samples, count(config, GENERATED_FILE)
            await asyncio.sleep(0.5)
            assert fleet.samples == given >= 5  # what was asked is given up
            await fleet.resume(0)
            assert (await validator.validate(0, "hash"))["graded"] == ATTEMPTS
            assert count(config, GENERATED_FILE) - asked <= ATTEMPTS - 5

    asyncio.run(scene())


def test_engines_that_answer_nothing_or_with_other_weights_end_it(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "SECONDS_BETWEEN_LOOKS", 0.05)
    with pytest.raises(RuntimeError, match=r"^validation of step 0: the engines answered nothing for \d+ s"):
        validated(setting, config_of(setting, tmp_path / "1"), Script(generate_seconds=1000.0))

    async def scene() -> None:
        async with asyncio.timeout(30), validating(setting, config_of(setting, tmp_path / "2"), Script()) as (one, _):
            await one.validate(1, "hash")

    with pytest.raises(RuntimeError, match="weights changed within version 1"):
        asyncio.run(scene())


def test_a_scaffold_of_several_calls_is_validated(setting: Setting, tmp_path: Path) -> None:
    config = config_of(
        setting,
        tmp_path / "run",
        scaffold="reasoning_cache",
        scaffold_settings={"rounds": 2},
        max_length=16_000,
        greedy=False,
        samples=1,
    )
    assert validated(setting, config, Script())["graded"] == PROBLEMS
    assert count(config, GENERATED_FILE) == 3 * PROBLEMS


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
    given = {"benchmark": str(path if rows else setting.rows)} | given
    judge = JudgeConfig(base_url="http://localhost:1/v1", model="judge")
    grader = GraderConfig(judges=(judge,) if "im_end" in str(rows) else ())
    with pytest.raises(UserError, match=message):
        read_validation(ValidationConfig(**given), RolloutConfig(max_tokens=400), grader, setting.tokenizer, 16_384)


def test_embedded_problems_are_the_held_out_ones_of_the_tables(setting: Setting) -> None:
    config = ValidationConfig(benchmark="embedded", problems=5, seed=3)
    rollout = RolloutConfig(max_tokens=400)
    plan, longest = read_validation(config, rollout, GraderConfig(), setting.tokenizer, 16_384)
    assert [one.problem for one in plan.problems] == generate("heldout", 5, 3)
    statements = [len(setting.tokenizer.encode(one.statement)) for one in plan.problems]
    assert longest > max(statements) + 400
    longer = config.model_copy(update={"max_length": 9000})
    assert read_validation(longer, rollout, GraderConfig(), setting.tokenizer, 16_384)[1] == 9000
