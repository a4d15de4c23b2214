"""Where the wall time of a step goes."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

IDLE, VALIDATE = "idle", "validate"
_PHASES = ("generate", "grade", "logprobs", "train", "transfer", VALIDATE)


def in_order(names: Iterable[str]) -> list[str]:
    """The names of a budget in the order of a step: phases that are not known come after the known ones, idle last."""
    known = {name: number for number, name in enumerate(_PHASES)}
    return sorted(names, key=lambda name: (name == IDLE, known.get(name, len(known)), name))


class TimeBudget:
    """Seconds by name, of the time since the last `restart`; what no name took is `idle`, so that they add up to it.

        with budget("train"):
            ...
        seconds = budget.restart()    # {"train": 1.4, "idle": 0.1}

    Of names inside each other the innermost takes the time. For one thread.
    """

    def __init__(self) -> None:
        self._names = [IDLE]
        self._since = time.perf_counter()
        self._seconds = {IDLE: 0.0}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside to `name`."""
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            self._charge()
            self._names.pop()

    def divide(self, name: str, parts: Mapping[str, float]) -> None:
        """Give the seconds of `name` to `parts`, seconds by name of what went on meanwhile elsewhere (in the rollout
        process, say). Parts that are less leave the rest to `idle`; parts that are more, since they overlap, get what
        there is in proportion."""
        self._charge()
        there = self._seconds.pop(name, 0.0)
        asked = sum(parts.values())
        scale = min(1.0, there / asked) if asked > 0 else 0.0
        for part, seconds in parts.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds * scale
        self._seconds[IDLE] += there - asked * scale

    def restart(self) -> dict[str, float]:
        """The seconds by name since the last restart, and begin anew."""
        self._charge()
        seconds, self._seconds = self._seconds, {IDLE: 0.0}
        return seconds

    def _charge(self) -> None:
        now = time.perf_counter()
        name = self._names[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now
