"""Which of a run's proofs a person should look at."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qedmeg.rollout.stored_proofs import Score


@dataclass(frozen=True)
class Choice:
    """Graded rollouts by what makes them worth a look. Of equals the latest come first, and each problem once."""

    best: list[Score]
    worst: list[Score]
    groups: list[list[Score]]
    """Groups whose rewards lie furthest apart, each with its rollouts from the best to the worst."""
    votes: list[Score]
    """Rollouts whose votes lie furthest apart."""


def choose(scores: Sequence[Score], most: int) -> Choice:
    """At most `most` of each kind."""
    by_group: dict[int, list[Score]] = defaultdict(list)
    for score in scores:
        by_group[score.group].append(score)
    groups = {number: sorted(group, key=lambda score: -score.share) for number, group in by_group.items()}
    spreads = {number: group[0].share - group[-1].share for number, group in groups.items()}
    divided = [group[0] for number, group in groups.items() if spreads[number] > 0]
    return Choice(
        best=_first(scores, lambda score: -score.share, most),
        worst=_first(scores, lambda score: score.share, most),
        groups=[groups[score.group] for score in _first(divided, lambda score: -spreads[score.group], most)],
        votes=_first([score for score in scores if _votes_apart(score) > 0], lambda score: -_votes_apart(score), most),
    )


def _first(scores: Sequence[Score], key: Callable[[Score], float], most: int) -> list[Score]:
    """The first `most` by `key`, each problem once; then, where problems are too few, others of the same."""
    latest = sorted(scores, key=lambda score: (key(score), -(-1 if score.step is None else score.step), score.rollout))
    of_new_problems: dict[str, Score] = {}
    others = []
    for score in latest:
        if of_new_problems.setdefault(score.problem, score) is not score:
            others.append(score)
    return sorted([*of_new_problems.values(), *others][:most], key=key)


def _votes_apart(score: Score) -> float:
    return max(score.votes) - min(score.votes) if score.votes else 0.0
