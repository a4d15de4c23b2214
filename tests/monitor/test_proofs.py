"""Which proofs a report shows."""

from qedmeg.monitor.proofs import choose
from qedmeg.rollout.stored_proofs import Score


def score(
    rollout: int, points: float, *, problem: str = "", group: int = 0, step: int | None = 0, votes: tuple = ()
) -> Score:
    return Score(rollout, group, problem or f"p{rollout}", step, 10, points, 7, votes)


def ids(scores: list[Score]) -> list[int]:
    return [one.rollout for one in scores]


def test_the_latest_of_the_best_and_the_worst() -> None:
    scores = [score(0, 7, step=1), score(1, 7, step=5), score(2, 0, step=None), score(3, 0, step=2), score(4, 3)]
    assert ids(choose(scores, 2).best) == [1, 0]
    assert ids(choose(scores, 2).worst) == [3, 2]
    assert ids(choose(scores, 9).best) == [1, 0, 4, 3, 2]


def test_each_problem_once_while_there_are_others() -> None:
    scores = [score(0, 7, problem="a"), score(1, 6, problem="a"), score(2, 5, problem="b"), score(3, 4, problem="b")]
    assert ids(choose(scores, 2).best) == [0, 2]
    assert ids(choose(scores, 3).best) == [0, 1, 2]


def test_groups_by_spread_and_rollouts_by_votes() -> None:
    scores = [
        *(score(i, points, group=0, problem="a") for i, points in enumerate((3, 3))),
        *(score(10 + i, points, group=1, problem="b") for i, points in enumerate((0, 7, 3))),
        *(score(20 + i, points, group=2, problem="c") for i, points in enumerate((1, 4))),
        score(30, 4, group=3, votes=(4.0, 4.0)),
        score(31, 4, group=3, votes=(7.0, 1.0, 4.0)),
    ]
    choice = choose(scores, 5)
    assert [ids(group) for group in choice.groups] == [[11, 12, 10], [21, 20]]
    assert ids(choice.votes) == [31]


def test_nothing() -> None:
    choice = choose([], 3)
    assert (choice.best, choice.worst, choice.groups, choice.votes) == ([], [], [], [])
