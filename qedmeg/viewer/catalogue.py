"""All files that are shown, as one: runs, problems and attempts in memory, texts read from the files when asked for."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qedmeg.errors import UserError
from qedmeg.rollout.store import STORE_FILE
from qedmeg.viewer.entry import Entry, Loaded, Run, ShownProblem, Source
from qedmeg.viewer.evaluated import EvaluatedSource
from qedmeg.viewer.filters import Filters, select
from qedmeg.viewer.hand import HAND_FILE, HandGrade, key_of, read_hand_grades
from qedmeg.viewer.trained import TrainedSource

_SHARE_OF_LOADING = 0.1
"""Of the time, at most, where files are written all the while."""
_KEPT_SELECTIONS = 16


@dataclass(frozen=True)
class Snapshot:
    """Everything but texts, at one moment."""

    runs: tuple[Run, ...]
    problems: Mapping[tuple[str, str], ShownProblem]
    """By benchmark and id, in the order of benchmarks and of problems in them."""
    entries: Sequence[Entry]
    """By problem, run and sample."""
    by_name: Mapping[tuple[str, str, int], Entry]
    """By key of the run, id of the problem, and sample."""
    sources: Mapping[str, Source]
    """By key of the run."""
    notes: tuple[str, ...]


class Catalogue:
    """Used from one thread. What is written to the files meanwhile is seen soon after."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises UserError naming a path that holds nothing to show."""
        self._sources: list[Source] = []
        try:
            for path in paths:
                self._sources += _open(path)
        except BaseException:
            self.close()
            raise
        self._loaded: dict[int, Loaded] = {}
        self._next_load = 0.0
        self._hand: dict[Path, tuple[float, dict[tuple[str, str, str, int], HandGrade]]] = {}
        self._selections: dict[Filters, list[Entry]] = {}
        self._snapshot = self._load()

    def snapshot(self) -> Snapshot:
        """What the files hold now, or a little earlier where loading them takes long."""
        if time.monotonic() >= self._next_load:
            self._snapshot = self._load()
        return self._snapshot

    def select(self, filters: Filters) -> list[Entry]:
        """The attempts that filters let through."""
        snapshot = self.snapshot()
        if filters.by_hand:  # changes with every grade that is given
            return select(filters, snapshot.entries, lambda entry: self.hand_grade(entry) is not None)
        if filters not in self._selections:
            if len(self._selections) >= _KEPT_SELECTIONS:
                self._selections.clear()
            self._selections[filters] = select(filters, snapshot.entries, lambda entry: False)
        return self._selections[filters]

    def source(self, entry: Entry) -> Source:
        """The file that an attempt is in."""
        return self._snapshot.sources[entry.run.key]

    def hand_file(self, entry: Entry) -> Path:
        """Where a grade by hand of this attempt is kept."""
        return self.source(entry).path.parent / HAND_FILE

    def hand_grade(self, entry: Entry) -> HandGrade | None:
        """The grade by hand of this attempt. Raises UserError where their file is damaged."""
        path = self.hand_file(entry)
        return self._hand_grades(path).get(key_of(self.source(entry).path, entry))

    def close(self) -> None:
        """Let go of all files."""
        for source in self._sources:
            source.close()

    def _hand_grades(self, path: Path) -> dict[tuple[str, str, str, int], HandGrade]:
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            written = 0
        if path not in self._hand or self._hand[path][0] != written:
            self._hand[path] = (written, read_hand_grades(path))
        return self._hand[path][1]

    def _load(self) -> Snapshot:
        began = time.monotonic()
        changed = [number for number, source in enumerate(self._sources) if source.changed()]
        if changed:
            names = Counter(name for source in self._sources for name in source.names())
            for number in changed:
                source = self._sources[number]
                keys = {name: f"{name} ({source.path})" for name in source.names() if names[name] > 1}
                self._loaded[number] = source.load(keys)
            self._snapshot = self._joined()
            self._selections.clear()
        self._next_load = time.monotonic() + (time.monotonic() - began) / _SHARE_OF_LOADING
        return self._snapshot

    def _joined(self) -> Snapshot:
        loaded = [(source, self._loaded[number]) for number, source in enumerate(self._sources)]
        runs = [run for _, one in loaded for run in one.runs]
        problems: dict[tuple[str, str], ShownProblem] = {}
        for _, one in loaded:
            for problem in one.problems:
                problems.setdefault((problem.benchmark, problem.id), problem)
        benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in problems))
        problems = dict(sorted(problems.items(), key=lambda item: benchmarks.index(item[0][0])))
        places = {key: place for place, key in enumerate(problems)}
        ranks = {run.key: rank for rank, run in enumerate(runs)}
        entries = sorted(
            (entry for _, one in loaded for entry in one.entries),
            key=lambda entry: (
                places[entry.problem.benchmark, entry.problem.id],
                ranks[entry.run.key],
                entry.sample,
            ),
        )
        return Snapshot(
            runs=tuple(runs),
            problems=problems,
            entries=entries,
            by_name={(entry.run.key, entry.problem.id, entry.sample): entry for entry in entries},
            sources={run.key: source for source, one in loaded for run in one.runs},
            notes=tuple(note for _, one in loaded for note in one.notes),
        )


def _open(path: Path) -> list[Source]:
    """What a path names: a file of results, a run folder, or a folder that holds results."""
    if path.is_file():
        return [TrainedSource(path.parent) if path.name == STORE_FILE else EvaluatedSource(path)]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a file of results, or the run_dir of a recipe")
    found: list[Source] = [TrainedSource(path)] if (path / STORE_FILE).is_file() else []
    files = sorted(one for one in path.glob("*.sqlite") if one.name != STORE_FILE)
    for file in files:
        try:
            found.append(EvaluatedSource(file))
        except UserError:
            continue  # a grader's cache, say: nobody asked for this very file
    if not found:
        raise UserError(f"{path}: holds neither {STORE_FILE} nor a file of results (*.sqlite); give one that does")
    return found
