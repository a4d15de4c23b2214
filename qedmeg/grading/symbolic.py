"""The symbolic grader: decides every rubric item of an embedded problem by reading the proof itself."""

import hashlib
from collections import Counter
from functools import lru_cache
from importlib.resources import files
from itertools import permutations

from qedmeg.data.problems import FAMILIES, Problem, family_of
from qedmeg.data.problems.family import Solution
from qedmeg.grading.claims import Reading, interpret
from qedmeg.grading.grade import Graded, ItemGrade
from qedmeg.grading.reading import MAX_CHARACTERS, MAX_SENTENCES, Sentence, read
from qedmeg.grading.rubric import Rubric
from qedmeg.grading.steps import Finding, Step


def _version() -> str:
    """From the source of all grading and of all problems: no change of a rule is forgotten."""
    digest = hashlib.sha256()
    for package in ("qedmeg.grading", "qedmeg.data.problems"):
        for file in sorted(files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return f"symbolic/{digest.hexdigest()[:12]}"


VERSION = _version()
MAX_CLAIMS = 40  # the embedded proofs make about 10
MAX_STRAY_CLAIMS = 12  # true, and no part of the proof: more is a list of guesses
CANONICAL_SHARE = 0.8  # of the letters in a proof that keeps the problem's
MAX_LETTERS = 4  # in a proof that renames the problem's


def grade(problem: Problem, proof: str) -> Graded:
    """The grade of a proof by its problem's rubric. The proof may be any text; it takes about 50 ms at most.

    A step earns its points when the proof shows it and claims nothing wrong about it, a conclusion only after the
    steps that it rests on. A false claim that belongs to no step costs the conclusion. The proof may name the
    problem's letters as it likes: the naming under which it earns most is taken.
    Raises `UserError` for a problem that no family made.
    """
    family_of(problem)
    return _grade(problem.family, tuple(problem.parameters.items()), problem.rubric, proof)


@lru_cache(maxsize=1024)  # a model that has learnt something writes the same proof many times over
def _grade(name: str, parameters: tuple[tuple[str, int], ...], rubric: Rubric, proof: str) -> Graded:
    family = FAMILIES[name]
    sentences = read(proof)
    if sentences is None:
        return _nothing(rubric, f"longer than {MAX_CHARACTERS} characters or {MAX_SENTENCES} sentences")
    claims = sum(bool(mention.chain.relations) for sentence in sentences for mention in sentence.formulas)
    if claims > MAX_CLAIMS:
        return _nothing(rubric, "a list of formulas, not a proof")
    best: Graded | None = None
    for letters in _namings(family.letters, sentences):
        solution = _solution(name, parameters, letters)
        reading = interpret(sentences, letters, solution.subjects, family.positive)
        graded = _by_steps(solution.steps, reading)
        if best is None or graded.points > best.points:
            best = graded
        if best.points == best.of:
            break
    assert best is not None  # the canonical naming is always among them
    return best


@lru_cache(maxsize=4096)
def _solution(family: str, parameters: tuple[tuple[str, int], ...], letters: tuple[str, ...]) -> Solution:
    return FAMILIES[family].solution(*letters, **dict(parameters))


def _namings(canonical: tuple[str, ...], sentences: tuple[Sentence, ...]) -> list[tuple[str, ...]]:
    """The ways to read the proof's letters as the problem's, the canonical one first.

    Only a proof with a good many letters that the problem does not have is read in other ways.
    """
    counts = Counter(
        letter
        for sentence in sentences
        for mention in sentence.formulas
        for term in mention.terms
        for letter in term.letters
    )
    own = sum(counts[letter] for letter in canonical)
    if all(counts[letter] for letter in canonical) and own >= CANONICAL_SHARE * counts.total():
        return [canonical]
    if len(counts) > MAX_LETTERS or counts.keys() <= {*canonical}:
        return [canonical]
    letters = [letter for letter, _ in counts.most_common()]
    letters += [letter for letter in canonical if letter not in letters][: max(0, len(canonical) - len(letters))]
    return [canonical, *(naming for naming in permutations(letters, len(canonical)) if naming != canonical)]


def _by_steps(steps: tuple[Step, ...], reading: Reading) -> Graded:
    findings = {step.name: step.check(reading) for step in steps}
    if _guesses(findings, reading):
        return _total([ItemGrade(step.name, 0, step.points, "a list of formulas, not a proof") for step in steps])
    items: dict[str, ItemGrade] = {}
    stray = _stray_falsehood(findings, reading)
    for step in steps:
        finding = findings[step.name]
        reason = _objection(step, finding, findings, items)
        if not reason and stray and step is steps[-1]:
            reason = f"the proof makes a false claim: {stray}"
        items[step.name] = ItemGrade(step.name, 0 if reason else step.points, step.points, reason or "shown")
    return _total(list(items.values()))


def _objection(step: Step, finding: Finding, findings: dict[str, Finding], items: dict[str, ItemGrade]) -> str:
    """Why the step earns nothing; an empty string when it does."""
    if finding.wrong:
        return f"wrong: {finding.wrong}"
    if finding.at is None:
        return "missing"
    for name in step.rests_on:
        shown = findings[name].at
        if items[name].points == 0 or shown is None:
            return f"unproved: '{name}' is missing or wrong"
        if shown > finding.at:
            return f"unproved: it stands before '{name}'"
    return ""


def _stray_falsehood(findings: dict[str, Finding], reading: Reading) -> str:
    """A false claim that costs no step its points, quoted; an empty string when there is none."""
    answered = set().union(*(finding.about for finding in findings.values()))
    for finding in findings.values():
        if finding.at is None or finding.wrong:
            answered |= finding.near
    for claim in reading.claims:
        if claim.false and claim.index not in answered:
            return claim.text
    return "" if all(sentence.readable for sentence in reading.sentences) else "an unreadable formula"


def _guesses(findings: dict[str, Finding], reading: Reading) -> bool:
    """Whether the proof is a list of formulas in the hope that some are right."""
    answered = set().union(*(finding.about | finding.near for finding in findings.values()))
    return len(reading.claims) - len(answered) > MAX_STRAY_CLAIMS


def _total(items: list[ItemGrade]) -> Graded:
    return Graded(sum(item.points for item in items), sum(item.of for item in items), tuple(items), VERSION)


def _nothing(rubric: Rubric, reason: str) -> Graded:
    return _total([ItemGrade(item.name, 0, item.points, reason) for item in rubric.items])
