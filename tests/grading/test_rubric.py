"""A rubric is worth 7 points, in items that can be told apart."""

import pytest

from qedmeg.grading.rubric import Rubric, RubricItem


def test_a_rubric_totals_seven() -> None:
    assert Rubric((RubricItem("step", 4, "Shows it."), RubricItem("conclusion", 3, "Concludes."))).of == 7


@pytest.mark.parametrize(
    ("points", "says"), [((4, 4), "8 points together, not 7"), ((), "0 points"), ((7, 0), "at least one point")]
)
def test_other_totals_are_refused(points: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rubric(tuple(RubricItem(f"item {i}", p, "Shows it.") for i, p in enumerate(points)))


def test_names_are_different() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Rubric((RubricItem("step", 4, "Shows it."), RubricItem("step", 3, "Shows more.")))
