"""The embedded proof problems: elementary theorems with parameters, made by rule, each with a proof and a rubric.

    problems = generate("train", 800, seed=1)
    proof = demonstration(problems[0], random.Random(1), incomplete=0.3, drop=0.3)
    qedmeg.grading.symbolic.grade(problems[0], proof)

A family is one file here; see `family.py` for what it is made of. Training and held-out problems differ in their
parameters, by a hash that no seed moves.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from qedmeg.data.problems.coprime import COPRIME
from qedmeg.data.problems.divisibility import DIFFERENCES, DIVISIBILITY
from qedmeg.data.problems.family import LEVELS, Family
from qedmeg.data.problems.induction import INDUCTION
from qedmeg.data.problems.means import MEANS
from qedmeg.data.problems.parity import PARITY
from qedmeg.data.problems.powers import POWERS
from qedmeg.data.problems.residues import RESIDUES
from qedmeg.data.problems.squares import SQUARES
from qedmeg.errors import UserError, near_miss
from qedmeg.grading.rubric import Rubric, RubricItem

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (PARITY, DIVISIBILITY, DIFFERENCES, SQUARES, MEANS, INDUCTION, RESIDUES, POWERS, COPRIME)
}
HELD_OUT_SHARE = 8  # one in eight

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Problem:
    """One theorem to prove. `id` names the family and the parameters; `level` is 1 (easy) to 3."""

    id: str
    family: str
    level: int
    statement: str
    rubric: Rubric
    parameters: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for one line of JSON; `from_json` reads it back."""
        return asdict(self)

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Problem":
        """The problem of a row; columns it does not know are left alone.

        Raises `UserError` naming the field when the row is no problem, or not the one that its family makes of its
        parameters: the grader trusts them.
        """
        try:
            problem = _ADAPTER.validate_python(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "row"
            raise UserError(
                f"not a problem: field '{field}': {first['msg']}; write rows with Problem.to_json"
            ) from None
        made = make_problem(problem.family, problem.level, problem.parameters)
        for field in ("id", "statement", "rubric"):
            if getattr(problem, field) != getattr(made, field):
                raise UserError(
                    f"problem '{problem.id}': field '{field}' is not what family '{problem.family}' makes of its "
                    "parameters; generate the problems anew"
                )
        return made


_ADAPTER = TypeAdapter(Problem)


def make_problem(family: str, level: int, parameters: dict[str, int]) -> Problem:
    """The problem with these parameters. Raises `UserError` when the family has none such at the level."""
    _check_level(level)
    order = next(iter(_named(family).parameters(level)), {})
    if parameters.keys() == order.keys():  # tables need not keep the order, of which the id is made
        parameters = {name: parameters[name] for name in order}
    key = tuple(parameters.items())
    if not any(key in _pool(_named(family).name, level, split) for split in get_args(Split)):
        raise UserError(
            f"parameters {parameters}: family '{family}' has no such problem at level {level}; see `generate`"
        )
    return _made(family, level, parameters)


def family_of(problem: Problem) -> Family:
    """The family that made the problem. Raises `UserError` when there is none of that name."""
    return _named(problem.family)


def _named(name: str) -> Family:
    if name not in FAMILIES:
        raise UserError(
            f"problem family '{name}' is not known{near_miss(name, FAMILIES)}; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def _check_level(level: int) -> None:
    if level not in LEVELS:
        raise UserError(f"level {level} is not known; known: {', '.join(map(str, LEVELS))}")


def generate(
    split: Split, count: int, seed: int, families: Sequence[str] | None = None, levels: Sequence[int] | None = None
) -> list[Problem]:
    """`count` different problems of one split in random order.

    The families (default: all) and levels (default: 1, the easy one) have equal parts; one that has no more problems
    leaves its part to the others. Raises `UserError` for an unknown split, family or level, and when all of them
    together do not have that many problems.
    """
    if split not in get_args(Split):
        raise UserError(f"split '{split}' is not known; known: {', '.join(get_args(Split))}")
    for level in levels or ():
        _check_level(level)
    rng = random.Random(seed)
    kinds = [(_named(name).name, level) for name in families or FAMILIES for level in levels or LEVELS[:1]]
    rng.shuffle(kinds)
    kinds.sort(key=lambda kind: len(_pool(*kind, split)))  # the smallest first: what they lack goes to the larger ones
    there_are = sum(len(_pool(*kind, split)) for kind in kinds)
    if count > there_are:
        raise UserError(
            f"count {count}: there are {there_are} {split} problems of these families and levels; ask for fewer or for "
            "more families or levels"
        )
    chosen: list[Problem] = []
    for i, (family, level) in enumerate(kinds):
        pool = _pool(family, level, split)
        share = min(len(pool), (count - len(chosen)) // (len(kinds) - i))
        chosen += [_made(family, level, dict(parameters)) for parameters in rng.sample(pool, share)]
    rng.shuffle(chosen)
    return chosen


@lru_cache(maxsize=128)
def _pool(name: str, level: int, split: Split) -> tuple[tuple[tuple[str, int], ...], ...]:
    """The parameters of one split of one level, in a fixed order; those of earlier levels are left out."""
    easier = {tuple(p.items()) for below in range(1, level) for p in FAMILIES[name].parameters(below)}
    here = (tuple(parameters.items()) for parameters in FAMILIES[name].parameters(level))
    return tuple(p for p in here if p not in easier and _held_out(name, p) == (split == "heldout"))


def _held_out(name: str, parameters: tuple[tuple[str, int], ...]) -> bool:
    digest = hashlib.sha256(_identity(name, parameters).encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def _identity(name: str, parameters: tuple[tuple[str, int], ...]) -> str:
    return name + "".join(f".{key}{number}" for key, number in parameters)


def _made(name: str, level: int, parameters: dict[str, int]) -> Problem:
    family = FAMILIES[name]
    steps = family.solution(*family.letters, **parameters).steps
    return Problem(
        id=_identity(name, tuple(parameters.items())),
        family=name,
        level=level,
        statement=family.statement(**parameters),
        rubric=Rubric(tuple(RubricItem(step.name, step.points, step.text) for step in steps)),
        parameters=parameters,
    )


def reference_proof(problem: Problem) -> str:
    """The full-mark proof: plain ASCII, one sentence a step, single spaces."""
    return " ".join(_sentences(problem))


def demonstration(problem: Problem, rng: random.Random, *, incomplete: float = 0.0, drop: float = 0.3) -> str:
    """A proof to learn from: with probability `incomplete` one that lacks sentences, else the full-mark one.

    Of an incomplete one each sentence is lost with probability `drop`; at least one is lost and at least one stays.
    """
    sentences = _sentences(problem)
    if rng.random() >= incomplete:
        return " ".join(sentences)
    kept = [sentence for sentence in sentences if rng.random() >= drop]
    if not kept or len(kept) == len(sentences):
        lost = rng.randrange(len(sentences))
        kept = sentences[:lost] + sentences[lost + 1 :]
    return " ".join(kept)


def _sentences(problem: Problem) -> list[str]:
    return list(family_of(problem).sentences(**problem.parameters))
