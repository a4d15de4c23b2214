"""Where groups get their prompts: the problems in their order, or states of the reasoning cache."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from qedmeg.data.prompts import Prompt, PromptSet
from qedmeg.rollout import schedule
from qedmeg.rollout.schedule import Queue

Begin = Callable[[Coroutine[Any, Any, None]], None]
"""Runs something beside all else, as long as prompts are wanted."""


class PromptSource(Protocol):
    """What a collector asks for prompts. It keeps in the store whatever its answers depend on."""

    def connect(self, begin: Begin, changed: Callable[[], None]) -> None:
        """Called once, before anything else: what work is begun with, and who is told when there is more to draw."""

    @property
    def is_busy(self) -> bool:
        """Whether prompts are being generated."""

    def draw(self, first: int, count: int, version: int, queue: Queue) -> Sequence[Prompt]:
        """The prompts of the groups `first`, `first` + 1, ..., which are begun now, in the caller's transaction; fewer
        than `count` where there are not as many yet.

        Args:
            first: number of the first of these groups.
            count: how many are wanted.
            version: of the engines' weights.
            queue: what they stand behind.
        """

    def prompt_of(self, group: int) -> Prompt:
        """The prompt of a group that has been begun."""

    def counts(self, step: int) -> dict[str, float]:
        """For the log of a step."""


class ProblemOrder:
    """Every problem once an epoch, in an order drawn from the seed."""

    def __init__(self, prompts: PromptSet, seed: int) -> None:
        self._prompts, self._seed = prompts, seed

    is_busy = False

    def connect(self, begin: Begin, changed: Callable[[], None]) -> None: ...

    def draw(self, first: int, count: int, version: int, queue: Queue) -> Sequence[Prompt]:
        return [self.prompt_of(group) for group in range(first, first + count)]

    def prompt_of(self, group: int) -> Prompt:
        return self._prompts[schedule.prompt_of(group, self._seed, len(self._prompts))]

    def counts(self, step: int) -> dict[str, float]:
        return {}
