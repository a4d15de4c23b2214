"""Kill a rollout process again and again while it generates, grades and assigns, and look at what becomes of the run.

The process is the real one, with stand-ins for engines and graders that answer by the requests' seeds. A trainer asks
for batches; the process is killed with SIGKILL at random moments, and after each kill the trainer goes on from a
checkpoint that may be older. No step may get another batch than it had before, no rollout may be used twice or be too
old, and no proof whose grade was stored may be graded again. Without lag, all batches must equal those of a run that
nobody killed. The result is written as JSON beside this script.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qedmeg.config_rl import GRPOConfig  # noqa: E402
from qedmeg.rollout.client import RolloutClient, RolloutFailed  # noqa: E402
from qedmeg.rollout.sample import Batch  # noqa: E402
from tests.rollout.collecting import GROUP, Setting, check, content, make_setting, query  # noqa: E402
from tests.rollout.scripted import COMMAND, GENERATED_FILE, GRADED_FILE, Script, lines  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
SCRIPT = Script(generate_seconds=0.05, grade_seconds=0.01, failing=0.05, same=0.2)
TRAIN_SECONDS = 0.1
CHECKPOINT_EVERY = 3


@dataclass
class Trainer:
    """Asks for batches, and remembers what each step was given."""

    given: dict[int, Batch] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    """Steps that were given another batch than before."""

    def train(self, client: RolloutClient, first: int, steps: int) -> None:
        for step in range(first, steps):
            client.pause()
            client.resume(step)
            batch = client.batch(step)
            if content([self.given.setdefault(step, batch)]) != content([batch]):
                self.changed.append(step)
            time.sleep(TRAIN_SECONDS)


def config_of(setting: Setting, run_dir: Path, max_lag: int) -> GRPOConfig:
    SCRIPT.write(run_dir)
    return setting.config(run_dir, max_lag=max_lag, drop_zero_variance=True, max_failure_rate=0.9)


def left_alone(setting: Setting, run_dir: Path, max_lag: int, steps: int) -> list[Batch]:
    """The batches of a run that nobody kills."""
    trainer = Trainer()
    with RolloutClient(config_of(setting, run_dir, max_lag), run_dir, setting.model, command=COMMAND) as client:
        trainer.train(client, 0, steps)
    return [trainer.given[step] for step in range(steps)]


def disturbed(setting: Setting, run_dir: Path, max_lag: int, steps: int, kills: int, seed: int) -> tuple[Trainer, int]:
    """The trainer of a run that is killed, and how often it was."""
    draw, trainer, made = random.Random(seed), Trainer(), 0
    longest_life = 1.3 * steps * TRAIN_SECONDS / kills  # on average all kills are made in two thirds of the steps
    config = config_of(setting, run_dir, max_lag)
    while True:
        done = max(trainer.given, default=-1) + 1
        first = done - done % CHECKPOINT_EVERY
        with RolloutClient(config, run_dir, setting.model, command=COMMAND) as client:
            killer = threading.Timer(draw.uniform(0, longest_life), _kill, [client])
            if made < kills:
                killer.start()
            try:
                trainer.train(client, first, steps)
                killer.cancel()
                return trainer, made
            except RolloutFailed:
                made += 1


def _kill(client: RolloutClient) -> None:
    with suppress(ProcessLookupError):
        client._process.send_signal(signal.SIGKILL)


def report(trainer: Trainer, alone: list[Batch], run_dir: Path, max_lag: int, kills: int) -> dict[str, Any]:
    """What became of the run."""
    batches = [trainer.given[step] for step in sorted(trainer.given)]
    check(batches, max_lag)  # whole groups, none used twice or too old; AssertionError says which
    (stored,) = query(run_dir, "SELECT count(*) FROM grades")[0]
    (twice,) = query(
        run_dir, "SELECT count(*) FROM (SELECT 1 FROM grades WHERE counts GROUP BY rollout HAVING count(*) > 1)"
    )[0]
    (kept,) = query(run_dir, "SELECT count(*) FROM rollouts")[0]
    generated, graded = lines(run_dir / GENERATED_FILE), lines(run_dir / GRADED_FILE)
    states = dict(query(run_dir, "SELECT state, count(*) FROM groups GROUP BY state"))
    equal = content(batches) == content(alone)
    result = {
        "max_lag": max_lag,
        "kills": kills,
        "steps": len(batches),
        "steps_given_another_batch": trainer.changed,
        "equal_to_the_run_left_alone": equal,
        "groups": states,
        "rollouts_stored": kept,
        "rollouts_begun_again": sum(count - 1 for count in Counter(generated).values()),
        "grades_stored": stored,
        "grades_stored_twice": twice,
        "grades_asked_for": len(graded),
        "grades_lost_in_hand": len(graded) - stored,
        "lag_mean": round(sum(batch.stats["lag_mean"] for batch in batches) / len(batches), 3),
        "lag_max": max(batch.stats["lag_max"] for batch in batches),
    }
    # A grade that was asked for and not stored was in hand at a kill: at most all that may be in hand, at each.
    in_hand = kills * (max_lag + 1) * len(batches[0].groups) * GROUP
    good = not trainer.changed and not twice and 0 <= len(graded) - stored <= in_hand and (equal or max_lag > 0)
    return {"passed": good, **result}


def campaign(setting: Setting, folder: Path, max_lag: int, steps: int, kills: int, seed: int) -> dict[str, Any]:
    alone = left_alone(setting, folder / f"alone-{max_lag}", max_lag, steps)
    trainer, made = disturbed(setting, folder / f"killed-{max_lag}", max_lag, steps, kills, seed)
    result = report(trainer, alone, folder / f"killed-{max_lag}", max_lag, made)
    return result | {"passed": result["passed"] and made == kills}


def main() -> int:
    """Run the campaign; exit status 0 when nothing was lost, changed or used twice."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/rollout_campaign.py --kills 20 --steps 60 --seed 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="kills without lag, and as many with it (default 20)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (default 60)")
    parser.add_argument("--max-lag", type=int, default=2, help="of the run with lag (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    arguments = parser.parse_args()
    results, begin = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rollout-campaign-") as name:
        setting = make_setting(Path(name) / "setting")
        for max_lag in (0, arguments.max_lag):
            results.append(campaign(setting, Path(name), max_lag, arguments.steps, arguments.kills, arguments.seed))
            print(json.dumps(results[-1]), flush=True)
    passed = all(result["passed"] for result in results)
    whole = {"passed": passed, "seed": arguments.seed, "seconds": round(time.monotonic() - begin), "runs": results}
    RESULT.write_text(json.dumps(whole, indent=2) + "\n")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
