"""What a proof is graded by: items that are worth points on their own."""

from dataclasses import dataclass

RUBRIC_POINTS = 7  # as in the olympiad, and as the published proof rubrics have it


@dataclass(frozen=True)
class RubricItem:
    """`text` says what earns the points, without saying the result: pasted into a proof it must earn nothing."""

    name: str
    points: int
    text: str


@dataclass(frozen=True)
class Rubric:
    """The items of one problem. Raises `ValueError` unless the points total 7 and no two items share a name."""

    items: tuple[RubricItem, ...]

    def __post_init__(self) -> None:
        if self.of != RUBRIC_POINTS:
            raise ValueError(f"rubric items are worth {self.of} points together, not {RUBRIC_POINTS}")
        if any(item.points < 1 for item in self.items):
            raise ValueError("every rubric item must be worth at least one point")
        if len({item.name for item in self.items}) < len(self.items):
            raise ValueError("two rubric items share a name")

    @property
    def of(self) -> int:
        return sum(item.points for item in self.items)
