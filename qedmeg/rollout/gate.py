"""The gate: trainer and engine must give the same tokens the same log-probabilities, or the run stops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qedmeg.errors import RunFailed

MOSTLY = 0.5
"""From this share of tokens beyond the tolerance on, the weights are suspected, below it the arithmetic."""


class GateFailed(RunFailed):
    """Trainer and engine do not agree: one message that says where, by how much, and what to look at."""


@dataclass(frozen=True)
class Difference:
    """Where the log-probabilities of a prompt set differ most."""

    greatest: float
    """|trainer − engine| in nats; NaN where either is NaN."""
    prompt: int
    """Index of the prompt."""
    token: int
    """Index of the token in the prompt: at least 1, since the first has no log-probability."""
    trainer: float
    engine: float
    beyond: float
    """Share of all tokens that differ by more than the tolerance."""


def greatest_difference(trainer: Sequence[np.ndarray], engine: Sequence[np.ndarray], tolerance: float) -> Difference:
    """Compare log-probabilities [P − 1] of the tokens 1, 2, ... of each prompt of P tokens.

    Raises:
        ValueError: the two are not of the same prompts, or hold no token.
    """
    shapes = [[array.shape for array in side] for side in (trainer, engine)]
    if shapes[0] != shapes[1] or sum(len(array) for array in trainer) == 0:
        raise ValueError(f"log-probabilities of other prompts: trainer {shapes[0]}, engine {shapes[1]}")
    ours_N, theirs_N = (np.concatenate(side).astype(np.float64) for side in (trainer, engine))
    # two equal infinities differ by NaN: neither side may hold one
    with np.errstate(invalid="ignore"):
        apart_N = np.abs(ours_N - theirs_N)
    apart_N[~np.isfinite(apart_N)] = np.nan
    place = int(np.argmax(np.where(np.isnan(apart_N), np.inf, apart_N)))
    prompts = np.repeat(np.arange(len(trainer)), [len(array) for array in trainer])
    before = int(np.searchsorted(prompts, prompts[place]))
    return Difference(
        greatest=float(apart_N[place]),
        prompt=int(prompts[place]),
        token=place - before + 1,
        trainer=float(ours_N[place]),
        engine=float(theirs_N[place]),
        beyond=float(np.mean(~(apart_N <= tolerance))),
    )


def check(
    engine: str, version: int, trainer: Sequence[np.ndarray], engine_says: Sequence[np.ndarray], tolerance: float
) -> Difference:
    """Where the engine named `engine` differs most from the trainer, both at weights `version`: at most `tolerance`.

    Raises:
        GateFailed: it differs by more, or a log-probability is NaN or infinite.
        ValueError: the two are not of the same prompts.
    """
    found = greatest_difference(trainer, engine_says, tolerance)
    if found.greatest <= tolerance:
        return found
    raise GateFailed(
        f"engine {engine} at weight version {version} does not agree with the trainer: of prompt {found.prompt}, token "
        f"{found.token} has log-probability {found.trainer:.6g} in the trainer and {found.engine:.6g} in the engine, "
        f"and they may differ by {tolerance:g} (rollout.gate_tolerance); {found.beyond:.0%} of all tokens are beyond "
        f"it. {_suspect(found)}"
    )


def _suspect(found: Difference) -> str:
    if not np.isfinite([found.trainer, found.engine]).all():
        side = "trainer" if not np.isfinite(found.trainer) else "engine"
        return f"Look at the {side}'s weights: they hold NaN or infinity, or overflow in its precision"
    if found.beyond >= MOSTLY:
        return (
            "So many differ when the engine has other weights: look at whether it serves this very model, whether the "
            "transfer of this version reached it, and whether its cache was cleared"
        )
    return (
        "So few differ when the arithmetic is another: look at the precision of both (compute.precision, and the "
        "engine's dtype), and raise rollout.gate_tolerance only if it is by rounding"
    )
