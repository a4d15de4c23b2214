"""Batches of groups from states of the reasoning cache, from scripted engines: order, ages, credits, recovery."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qedmeg.rollout.sample import Batch
from qedmeg.rollout.store import STORE_FILE, read_batch
from qedmeg.training.rollout_batch import trained_summaries
from tests.rollout.collecting import GROUP, Setting, check, collect, content, make_setting, query, running
from tests.rollout.scripted import GENERATED_FILE, Script, lines

PROMPTS = 4
BOTH = {"train": "both", "states_per_problem": 3}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def rounds(batch: Batch) -> list[int]:
    return [group.state.round for group in batch.groups if group.state is not None]


def ages(batch: Batch) -> list[int]:
    return [group.state.age for group in batch.groups if group.state is not None]


def test_without_lag_the_same_seed_gives_the_same_batches(setting: Setting, tmp_path: Path) -> None:
    contents = []
    for number, seconds in enumerate((0.0, 0.004)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        script = Script(generate_seconds=seconds, grade_seconds=seconds / 2, same=0.3)
        config = setting.rc_config(folder, {}, drop_zero_variance=True)
        batches, _ = collect(setting, config, script, steps=5)
        check(batches, max_lag=0)
        assert [len(batch.groups) for batch in batches] == [PROMPTS] * 5
        assert sum(batch.stats["groups_refilled"] for batch in batches) > 0
        contents.append(content(batches))
    assert contents[0] == contents[1]


def test_a_chain_reasons_and_summarises_and_its_states_are_asked_from_their_summary(
    setting: Setting, run_dir: Path
) -> None:
    batches, _ = collect(setting, setting.rc_config(run_dir, {}), Script(), steps=3)
    assert query(run_dir, "SELECT count(*), sum(done) FROM chains") == [(6, 6)]  # 4 prompts, two of each chain
    assert query(run_dir, "SELECT kind, count(*) FROM turns GROUP BY kind") == [("reason", 12), ("summarise", 12)]
    assert query(run_dir, "SELECT round, count(*) FROM states GROUP BY round") == [(1, 6), (2, 6), (3, 6)]
    summaries = dict(query(run_dir, 'SELECT "group", summary FROM draws JOIN states ON states.id = state'))
    statements = {prompt.problem.id: prompt.problem.statement for prompt in setting.prompts}
    for batch in batches:
        assert ages(batch) == [0] * PROMPTS
        assert [one.problem for one in batch.groups[::2]] == [one.problem for one in batch.groups[1::2]]
        for group in batch.groups:
            asked = setting.tokenizer.decode(group.rollouts[0].sample.prompt_P.tolist())
            assert statements[group.problem] in asked
            assert group.state is not None
            assert (summaries[group.id] != "") == (group.state.round > 1)
            assert summaries[group.id] in asked
            assert ("Notes on earlier work" in asked) == (group.state.round > 1)
    assert {round for batch in batches for round in rounds(batch)} == {1, 2, 3}
    # a summary of the text that the chain wrote, and of the notes before it
    prompt, reasoning = query(
        run_dir,
        "SELECT s.prompt, r.text FROM turns s JOIN turns r ON r.chain = s.chain AND r.round = s.round AND "
        "r.kind = 'reason' WHERE s.kind = 'summarise' AND s.round = 2",
    )[0]
    told = setting.tokenizer.decode(np.frombuffer(prompt, dtype="<i4").tolist())
    assert reasoning in told
    assert "Notes until now" in told or "<notes" in told


def test_all_chains_go_side_by_side_round_by_round(setting: Setting, run_dir: Path) -> None:
    async def drive() -> list[int]:
        sizes = []
        async with running(setting, setting.rc_config(run_dir, {}), Script()) as run:
            generate = run.fleet.generate

            def counted(requests: Any, sampling: Any) -> Any:
                sizes.append((len(requests), sampling.max_tokens))
                return generate(requests, sampling)

            run.fleet.generate = counted  # type: ignore[method-assign]
            await run.step(0)
        return sizes

    assert asyncio.run(drive()) == [(2, 400), (2, 60), (2, 400), (2, 60), (PROMPTS * GROUP, 400)]


def test_fewer_chains_than_prompts_are_filled_up_from_the_buffer_until_states_are_too_old(
    setting: Setting, run_dir: Path
) -> None:
    config = setting.rc_config(run_dir, {"chains_per_step": 1, "max_age": 2})
    batches, _ = collect(setting, config, Script(), steps=8)
    check(batches, max_lag=0)
    begun = [count for _, count in query(run_dir, "SELECT version, count(*) FROM chains GROUP BY version")]
    assert begun == [2, 1, 1, 1, 1, 1, 1, 1]  # the first step has no others to fill up from
    for batch in batches[1:]:
        assert sorted(ages(batch))[:2] == [0, 0]
        assert 0 < max(ages(batch)) <= 2
    dropped = [batch.stats["states_too_old"] for batch in batches]
    assert dropped == [0, 0, 0, 6, 3, 3, 3, 3]  # three states of each chain
    assert [batch.stats["states_held"] for batch in batches] == [6, 9, 12, 9, 9, 9, 9, 9]


def test_a_state_has_one_group_of_a_version(setting: Setting, run_dir: Path) -> None:
    config = setting.rc_config(run_dir, {"chains_per_step": 1}, drop_zero_variance=True)
    collect(setting, config, Script(same=0.4), steps=8)
    assert query(run_dir, "SELECT count(*) FROM draws GROUP BY state, version HAVING count(*) > 1") == []
    assert query(run_dir, "SELECT count(*) FROM draws GROUP BY state HAVING count(*) > 1") != [], "states come again"


@pytest.mark.parametrize("max_lag", [1, 3])
def test_with_lag_chains_are_rolled_out_while_training_runs(setting: Setting, run_dir: Path, max_lag: int) -> None:
    config = setting.rc_config(run_dir, {"max_age": 3}, max_lag=max_lag)
    batches, _ = collect(setting, config, Script(generate_seconds=0.01), steps=10, train_seconds=0.06)
    check(batches, max_lag)
    assert all(0 <= age <= 3 for batch in batches for age in ages(batch))
    assert max(batch.stats["lag_max"] for batch in batches) == max_lag
    waited = [batch.stats["seconds_generate"] + batch.stats["seconds_grade"] for batch in batches]
    assert sum(waited[2:]) < waited[0] * len(waited[2:]), "chains went on while it trained"
    (chains,) = query(run_dir, "SELECT count(*) FROM chains")[0]
    assert chains <= 2 * (10 + max_lag + 2)


# --- summaries that are trained ---------------------------------------------------------------------------------------


def test_with_both_each_summary_earns_its_groups_mean_less_that_of_the_group_before(
    setting: Setting, run_dir: Path
) -> None:
    config = setting.rc_config(run_dir, BOTH, prompts=6)
    batches, _ = collect(setting, config, Script(), steps=4)
    check(batches, max_lag=0)
    different = 0
    for batch in batches:
        assert len(batch.summaries) == 2
        means = {group.id: np.mean([rollout.reward for rollout in group.rollouts]) for group in batch.groups}
        draws = query(run_dir, 'SELECT fork, state, "group" FROM draws ORDER BY state')
        for summaries in batch.summaries:
            fork = summaries.state
            of = {state: means[group] for parent, state, group in draws if parent == fork}
            before = of.pop(fork)
            assert summaries.before == pytest.approx(before)
            assert [one.reward for one in summaries.rollouts] == pytest.approx([mean - before for mean in of.values()])
            first, second = summaries.rollouts
            np.testing.assert_array_equal(first.sample.prompt_P, second.sample.prompt_P)
            assert "Write notes on work" in setting.tokenizer.decode(first.sample.prompt_P.tolist())
            assert first.sample.tokens_T.tolist() != second.sample.tokens_T.tolist()
            assert first.sample.versions == ((batch.step, 0),)
            different += first.reward != second.reward
    assert different > 0


def test_with_both_nothing_is_credited_where_a_group_is_missing(setting: Setting, run_dir: Path) -> None:
    # of the first group, which is a parent's, too few grades come
    config = setting.rc_config(run_dir, BOTH, prompts=6, max_failure_rate=1.0, regrades=0)
    (batch,), _ = collect(setting, config, Script(outage=(0, GROUP - 1)), steps=1)
    assert batch.stats["groups_dropped/too few grades"] == 1
    assert len(batch.groups) == 6
    assert len(batch.summaries) == 1


@pytest.mark.parametrize("max_lag", [1, 2, 3])
def test_with_both_and_lag_summaries_are_young_enough_to_be_trained(
    setting: Setting, run_dir: Path, max_lag: int
) -> None:
    config = setting.rc_config(run_dir, BOTH, prompts=6, max_lag=max_lag)
    batches, _ = collect(setting, config, Script(generate_seconds=0.01), steps=12, train_seconds=0.1)
    check(batches, max_lag)
    settled = batches[max_lag + 1 :]
    written = sum(len(group.rollouts) for batch in settled for group in batch.summaries)
    young = sum(len(group.rollouts) for batch in settled for group in trained_summaries(batch, max_lag))
    assert 0 < written <= 2 * young, "most of them, however slow the machine"
    assert max(batch.stats["lag_max"] for batch in batches) >= 1, "generation goes on meanwhile"


# --- recovery ---------------------------------------------------------------------------------------------------------

KILLS = [
    ("begin", 2, "after"),
    ("add_turn", 1, "before"),
    ("add_turn", 2, "after"),
    ("add_summary", 1, "before"),
    ("add_summary", 3, "after"),
    ("add_turn", 6, "after"),
    ("finish", 1, "before"),
    ("finish", 2, "after"),
    ("keep_draw", 2, "after"),
]


@pytest.mark.parametrize("cache", [{}, BOTH | {"chains_per_step": 1}])
def test_killed_at_every_point_nothing_is_lost_or_used_twice(
    setting: Setting, tmp_path: Path, cache: dict[str, Any]
) -> None:
    steps = 14
    (tmp_path / "alone").mkdir()
    alone, _ = collect(setting, setting.rc_config(tmp_path / "alone", cache), Script(), steps)
    run_dir = tmp_path / "killed"
    run_dir.mkdir()
    config, given = setting.rc_config(run_dir, cache), {}
    for kill in KILLS:
        first = max(0, max(given, default=0) - 1)
        status = in_a_process_of_its_own(setting, config, kill, steps, first)
        assert status == signal.SIGKILL, f"it was not killed at {kill}"
        for (step,) in query(run_dir, "SELECT step FROM steps"):
            batch = read_batch(run_dir / STORE_FILE, step)
            assert content([given.setdefault(step, batch)]) == content([batch])
    assert max(given, default=0) < steps - 1, "it was through before all kills"
    batches, _ = collect(setting, config, Script(), steps)
    check(batches, max_lag=0)
    assert content(batches) == content(alone)
    for table in ("chains", "turns", "states", "draws"):
        (ours,), (theirs,) = (
            query(folder, f"SELECT count(*) FROM {table}")[0] for folder in (run_dir, tmp_path / "alone")
        )
        assert ours == theirs
    # a turn that was kept is not generated again, but for those in hand when it was killed
    generated = len(lines(run_dir / GENERATED_FILE)) - len(lines(tmp_path / "alone" / GENERATED_FILE))
    assert 0 <= generated <= len(KILLS) * 4


def in_a_process_of_its_own(
    setting: Setting, config: object, kill: tuple[str, int, str], steps: int, first: int
) -> int:
    """The signal that killed it; 0 where it came to its end."""
    child = os.fork()
    if child == 0:
        from qedmeg.rollout.stored_chains import Chains
        from tests.rollout.scripted import kill_at

        try:
            kill_at(*kill, of=Chains)
            collect(setting, config, Script(), steps, first=first)  # type: ignore[arg-type]
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]
