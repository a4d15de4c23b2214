"""Batches of graded groups from scripted engines and graders: lag, refills, failures, recovery at every point."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from qedmeg.errors import UserError
from qedmeg.grading.grade import Graded
from qedmeg.rollout.grading import NO_PROOF, TRIES_IN_OUTAGES, proof_of
from qedmeg.rollout.protocol import WeightsNeeded
from qedmeg.rollout.sample import Batch, Sample
from qedmeg.rollout.store import STORE_FILE, read_batch
from tests.rollout.collecting import GROUP, PROMPTS, Setting, check, collect, content, make_setting, query, running
from tests.rollout.scripted import GENERATED_FILE, GRADED_FILE, Script, lines


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


# --- without lag ------------------------------------------------------------------------------------------------------


def test_without_lag_the_same_seed_gives_the_same_batches(setting: Setting, tmp_path: Path) -> None:
    contents = []
    for number, seconds in enumerate((0.0, 0.004)):  # others finish first, and the result is the same
        folder = tmp_path / f"{number}"
        folder.mkdir()
        script = Script(generate_seconds=seconds, grade_seconds=seconds / 2, same=0.3)
        config = setting.config(folder, drop_zero_variance=True)
        batches, _ = collect(setting, config, script, steps=5)
        check(batches, max_lag=0)
        assert all(
            rollout.sample.versions == ((b.step, 0),) for b in batches for g in b.groups for rollout in g.rollouts
        )
        assert sum(batch.stats["groups_refilled"] for batch in batches) > 0
        contents.append(content(batches))
    assert contents[0] == contents[1]


def test_without_lag_nothing_runs_while_the_trainer_does(setting: Setting, run_dir: Path) -> None:
    async def drive() -> None:
        async with running(setting, setting.config(run_dir), Script(generate_seconds=0.01)) as run:
            for step in range(2):
                await run.step(step)
                done = len(lines(run_dir / GENERATED_FILE))
                assert done == (step + 1) * PROMPTS * GROUP
                await asyncio.sleep(0.05)
                assert len(lines(run_dir / GENERATED_FILE)) == done

    asyncio.run(drive())


def test_a_batch_is_the_same_whenever_it_is_asked_for(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir)
    batches, _ = collect(setting, config, Script(), steps=3)
    generated = lines(run_dir / GENERATED_FILE)
    # a trainer that goes on from its checkpoint of step 1
    again, _ = collect(setting, config, Script(), steps=3, first=1)
    assert content(again) == content(batches[1:])
    assert lines(run_dir / GENERATED_FILE) == generated


def test_steps_come_in_their_order(setting: Setting, run_dir: Path) -> None:
    async def drive() -> None:
        async with running(setting, setting.config(run_dir), Script()) as run:
            with pytest.raises(
                RuntimeError, match="step 0 was asked for while the engines have weights of version None"
            ):
                await run.collector.batch(0)
            with pytest.raises(
                UserError, match=r"holds the batches of 0 steps, and weights of version 3 was asked for"
            ):
                await run.step(3)
            await run.step(0)
            with pytest.raises(RuntimeError, match="step 1 was asked for while the engines have weights of version 0"):
                await run.collector.batch(1)
            with pytest.raises(UserError, match="it is not the file that belongs to the checkpoint; put it back"):
                await run.collector.batch(2)

    asyncio.run(drive())


# --- with lag ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_lag", [1, 3])
def test_lag_is_used_and_bounded(setting: Setting, run_dir: Path, max_lag: int) -> None:
    script = Script(generate_seconds=0.05, grade_seconds=0.002)
    batches, _ = collect(setting, setting.config(run_dir, max_lag=max_lag), script, steps=12, train_seconds=0.09)
    check(batches, max_lag)
    assert max(batch.stats["lag_max"] for batch in batches) == max_lag
    changed = [len(r.sample.versions) > 1 for b in batches for g in b.groups for r in g.rollouts]
    assert 0 < sum(changed) < len(changed)
    waited = [batch.stats["seconds_generate"] + batch.stats["seconds_grade"] for batch in batches]
    assert sum(waited[2:]) < 0.5 * waited[0] * len(waited[2:])  # generation went on while it trained
    (begun,) = query(run_dir, "SELECT count(*) FROM groups WHERE state != 'dropped'")[0]
    assert begun <= (12 + max_lag) * PROMPTS
    assert all(batch.stats["queue_length"] <= max_lag * PROMPTS for batch in batches)


def test_what_is_too_old_is_dropped_and_counted(setting: Setting, run_dir: Path) -> None:
    # now and then a rollout takes many steps, and may be one version old
    script = Script(generate_seconds=0.01, slow=0.06)
    batches, _ = collect(setting, setting.config(run_dir, max_lag=1), script, steps=24, train_seconds=0.01)
    check(batches, max_lag=1)
    dropped = sum(batch.stats["rollouts_too_old"] for batch in batches)
    assert (
        dropped == query(run_dir, "SELECT count(*) FROM rollouts WHERE too_old IS NOT NULL AND too_old < 24")[0][0] > 0
    )
    assert sum(batch.stats["groups_dropped/too old"] for batch in batches) > 0
    graded = query(run_dir, "SELECT count(*) FROM rollouts JOIN grades ON rollout = rollouts.id")[0][0]
    assert graded == len(lines(run_dir / GRADED_FILE))


def test_a_trainer_that_goes_on_from_an_older_checkpoint_gets_its_batches_again(
    setting: Setting, run_dir: Path
) -> None:
    config, script = setting.config(run_dir, max_lag=1), Script(generate_seconds=0.01)
    batches, _ = collect(setting, config, script, steps=6, train_seconds=0.02)
    again, _ = collect(setting, config, script, steps=9, train_seconds=0.02, first=3)
    assert content(again[:3]) == content(batches[3:])
    check([*batches[:3], *again], max_lag=1)


# --- grades -----------------------------------------------------------------------------------------------------------


def test_grades_that_fail_leave_their_group_and_are_asked_for_anew(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir, max_failure_rate=0.9, regrades=1)
    batches, _ = collect(setting, config, Script(failing=0.3), steps=8)
    check(batches, max_lag=0)
    attempts = [rollout.attempt for batch in batches for group in batch.groups for rollout in group.rollouts]
    assert set(attempts) == {0, 1}
    sizes = {len(group.rollouts) for batch in batches for group in batch.groups}
    assert min(sizes) < GROUP == max(sizes)
    asked = lines(run_dir / GRADED_FILE)
    assert sum(batch.stats["grades_failed/timeout"] for batch in batches) == asked.count("failed") > 10
    assert sum(batch.stats["grader_requests"] for batch in batches) == len(asked)
    assert sum(batch.stats["grader_prompt_tokens"] for batch in batches) == 10 * len(asked)


def test_a_group_is_graded_by_one_grader(setting: Setting, run_dir: Path) -> None:
    """Another grader takes over in the midst of a step."""
    config = setting.config(run_dir)

    async def scene() -> tuple[Batch, list[str]]:
        async with running(setting, config, Script(grade_seconds=0.05)) as run:
            run.grader.version = "the one before"
            step = asyncio.ensure_future(run.step(0))
            while run.grader.asked < PROMPTS * GROUP or not lines(run_dir / GRADED_FILE):
                await asyncio.sleep(0.001)
            step.cancel()
        graded = len(lines(run_dir / GRADED_FILE))
        async with running(setting, config, Script()) as run:
            batch = await run.step(0)
            assert run.grader.asked == PROMPTS * GROUP > graded > 0
            return batch, run.said

    batch, said = asyncio.run(scene())
    assert {rollout.grade.grader for group in batch.groups for rollout in group.rollouts} == {"scripted"}
    assert any("the grader is another one than before" in line for line in said)


def test_a_group_with_too_few_grades_is_replaced(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir, max_failure_rate=1.0, regrades=0, min_graded=0.75)
    (batch,), _ = collect(setting, config, Script(outage=(0, GROUP // 2)), steps=1)
    assert [group.id for group in batch.groups] == [1, 2, 3]
    assert (batch.stats["groups_dropped/too few grades"], batch.stats["groups_refilled"]) == (1, 1)


def test_an_outage_is_waited_for_and_costs_no_rollout(setting: Setting, run_dir: Path) -> None:
    # the last grades are the first step's 12; from then on four failures are more than a tenth of all
    config = setting.config(run_dir, max_failure_rate=0.1, regrades=1, failure_pause_seconds=0.05)
    batches, run = collect(setting, config, Script(outage=(14, 60)), steps=4)
    check(batches, max_lag=0)
    failed = query(run_dir, "SELECT counts, count(*) FROM grades WHERE failure IS NOT NULL GROUP BY counts")
    counted, waited = dict(failed).get(1, 0), dict(failed)[0]
    assert counted <= 2
    assert counted + waited == 46 == lines(run_dir / GRADED_FILE).count("failed")
    assert sum(batch.stats["seconds_paused"] for batch in batches) > 0.1
    assert "graders are failing" in run.said[0]
    assert "timeout of the last" in run.said[0]
    assert "no proof is graded for 0.05 s, then they are asked again; the last failure: no answer" in run.said[0]


@pytest.mark.parametrize("outage", [(0, 0), (8, 40)])
def test_proofs_that_never_get_a_grade_hold_up_no_step(
    setting: Setting, run_dir: Path, outage: tuple[int, int]
) -> None:
    """Four of ten are refused whenever they are asked about: more than may fail, and in the end all that is left."""
    config = setting.config(run_dir, max_failure_rate=0.1, regrades=1, failure_pause_seconds=0.02)
    batches, run = collect(setting, config, Script(refused=0.4, outage=outage), steps=4)
    check(batches, max_lag=0)
    assert "graders are failing" in run.said[0]
    refused = query(run_dir, "SELECT sum(failure IS 'refused'), sum(counts) FROM grades GROUP BY rollout")
    assert max(times for times, _ in refused) == TRIES_IN_OUTAGES
    assert {counted for _, counted in refused} == {1}
    (counted,), (waited,) = query(
        run_dir, "SELECT sum(failure IS 'timeout') FROM grades GROUP BY counts ORDER BY -counts"
    )
    assert counted <= 2
    assert counted + waited == outage[1] - outage[0]


def test_groups_without_variance_are_replaced(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir, drop_zero_variance=True)
    batches, _ = collect(setting, config, Script(same=0.5), steps=5)
    for batch in batches:
        assert len(batch.groups) == PROMPTS
        for group in batch.groups:
            assert len({rollout.reward for rollout in group.rollouts}) > 1
    assert sum(batch.stats["groups_dropped/zero variance"] for batch in batches) > 3


@pytest.mark.parametrize("max_lag", [0, 1])
def test_where_no_group_has_variance_a_step_takes_what_there_is(setting: Setting, run_dir: Path, max_lag: int) -> None:
    config = setting.config(run_dir, drop_zero_variance=True, max_refills=2, max_lag=max_lag)
    batches, _ = collect(setting, config, Script(same=1.0), steps=3)
    check(batches, max_lag)
    for batch in batches:
        assert len(batch.groups) == PROMPTS
        dropped = batch.stats["groups_dropped/zero variance"]  # and not used after all
        assert dropped == batch.stats["groups_refilled"] <= (2 + max_lag) * PROMPTS


def test_after_the_refills_a_step_may_be_smaller(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir, drop_zero_variance=True, max_refills=0)
    batches, _ = collect(setting, config, Script(same=0.5), steps=6)
    assert {len(batch.groups) for batch in batches} >= {1, 2}
    for batch in batches:
        if len({r.reward for r in batch.groups[0].rollouts}) > 1:
            assert len(batch.groups) == PROMPTS - batch.stats["groups_dropped/zero variance"]


def test_thoughts_are_no_proof(setting: Setting, run_dir: Path) -> None:
    config = setting.config(run_dir, thinking=True)
    batches, _ = collect(setting, config, Script(thinking=True), steps=3)
    check(batches, max_lag=0)
    proofs = dict(query(run_dir, "SELECT id, proof FROM rollouts"))
    unfinished = [rollout for b in batches for g in b.groups for rollout in g.rollouts if proofs[rollout.id] is None]
    assert 0 < len(unfinished) < len(proofs)
    for rollout in unfinished:
        assert isinstance(rollout.grade, Graded)
        assert (rollout.grade.points, rollout.grade.grader, len(rollout.grade.items) > 1) == (0, NO_PROOF, True)
        assert rollout.grade.items[0].reason == "the answer holds no </think>: it never came to a proof"
    assert len(lines(run_dir / GRADED_FILE)) == len(proofs) - len(unfinished)
    texts = [text for text in proofs.values() if text]
    assert not any("think" in text or "<|" in text or text != text.strip() for text in texts)


def test_the_proof_is_the_text_without_control_tokens(setting: Setting) -> None:
    def proof(text: str, *, thinking: bool) -> str | None:
        tokens_T = np.array(setting.tokenizer.encode(text), dtype=np.int32)
        sample = Sample(tokens_T, tokens_T, tokens_T.astype(np.float32), ((0, 0),), "stop")
        return proof_of(setting.tokenizer, sample, thinking=thinking)

    assert proof("Let n = 2k.<|im_end|>", thinking=False) == "Let n = 2k."
    assert proof("a </think> b </think>\n\nLet <|endoftext|>n.<|im_end|>", thinking=True) == "Let n."
    assert proof("a </think> b", thinking=False) == "a </think> b"
    assert proof("Let n = 2k.<|im_end|>", thinking=True) is None
    assert proof("a </think><|im_end|>", thinking=True) == ""


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_engines_that_lost_their_weights_are_told_of(setting: Setting, run_dir: Path) -> None:
    async def drive() -> None:
        script = Script(generate_seconds=0.01, lose_weights_at=2)
        async with running(setting, setting.config(run_dir), script) as run:
            await run.collector.pause()
            await run.collector.resume(0)
            with pytest.raises(WeightsNeeded):
                await run.collector.batch(0)
            await run.step(0)

    asyncio.run(drive())


def test_an_engine_that_goes_on_with_old_weights_ends_the_run(setting: Setting, run_dir: Path) -> None:
    async def drive() -> None:
        async with asyncio.timeout(20), running(setting, setting.config(run_dir), Script()) as run:
            await run.step(0)
            await run.collector.pause()
            await run.collector.resume(1)
            run.fleet.version = 0
            await run.collector.batch(1)

    with pytest.raises(RuntimeError, match="went on with weight version 1 and generated with 0"):
        asyncio.run(drive())


def test_an_engine_that_fails_ends_the_run(setting: Setting, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("are the weights broken?")

    monkeypatch.setattr("tests.rollout.scripted.ScriptedFleet._text", fail)
    with pytest.raises(ValueError, match="are the weights broken"):
        collect(setting, setting.config(run_dir), Script(), steps=1)


KILLS = [
    ("begin_group", 5, "after"),
    *(("add_sample", number, when) for number, when in ((1, "before"), (7, "before"), (7, "after"), (20, "after"))),
    *(("add_grade", number, when) for number, when in ((1, "after"), (9, "before"), (9, "after"), (24, "before"))),
    ("make_ready", 4, "after"),
    *(("assign", number, when) for number, when in ((1, "before"), (1, "after"), (2, "before"))),
]


def test_killed_at_every_point_nothing_is_lost_or_used_twice(setting: Setting, tmp_path: Path) -> None:
    """Killed at one point after the other, in the end the run has the batches of one that was left alone."""
    steps = 15
    (tmp_path / "alone").mkdir()
    alone, _ = collect(setting, setting.config(tmp_path / "alone"), Script(), steps)
    run_dir = tmp_path / "killed"
    run_dir.mkdir()
    config, given = setting.config(run_dir), {}
    for kill in KILLS:
        first = max(0, max(given, default=0) - 1)  # the checkpoint is older than the last batch
        status = _in_a_process_of_its_own(setting, config, Script(kill=kill), steps, first)
        assert status == signal.SIGKILL, f"it was not killed at {kill}"
        for (step,) in query(run_dir, "SELECT step FROM steps"):
            batch = read_batch(run_dir / STORE_FILE, step)
            assert content([given.setdefault(step, batch)]) == content([batch])
    assert max(given) < steps - 1, "it was through before all kills"
    batches, _ = collect(setting, config, Script(), steps)
    check(batches, max_lag=0)
    assert content(batches) == content(alone)
    # Each proof was graded once, but for those whose grade was lost with the process that had it in hand.
    (graded,) = query(run_dir, "SELECT count(*) FROM grades WHERE counts")[0]
    lost = sum(method == "add_grade" and when == "before" for method, _, when in KILLS)
    assert len(lines(run_dir / GRADED_FILE)) == graded + lost == steps * PROMPTS * GROUP + lost


def _in_a_process_of_its_own(setting: Setting, config: object, script: Script, steps: int, first: int) -> int:
    """The signal that killed it; 0 where it came to its end."""
    child = os.fork()
    if child == 0:
        from tests.rollout.scripted import kill_at

        try:
            kill_at(*script.kill)
            collect(setting, config, script, steps, first=first)  # type: ignore[arg-type]
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]
