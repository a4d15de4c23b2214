"""What a proof claims: its formulas with the words they refer to, the case they stand in, and whether they hold."""

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from qedmeg.grading.algebra import NoValue, Value, evaluate
from qedmeg.grading.formula import Letter, Node, parse
from qedmeg.grading.reading import Mention, Sentence, Term, letters_of

ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SAMPLES = [Fraction(n, 2) for n in (-40, -21, -10, -5, -2, -1, 0, 1, 2, 3, 5, 10, 21, 40)]
MAX_DEFINITION = 3  # monomials in what a letter stands for
_CASES_END = re.compile(r"\b(?:cases?|every|always|all|any|never)\b")


@dataclass(frozen=True)
class Subject:
    """Words that stand for a formula: `pattern` ("value|it") for `text`, up to multiples of a `modulus`."""

    pattern: str
    text: str
    modulus: int | None = None


@dataclass(frozen=True)
class Link:
    """Two neighbours in a chain. `holds` is None for a definition, a condition, or what cannot be decided."""

    left: Term
    relation: str
    right: Term
    holds: bool | None


@dataclass(frozen=True)
class Claim:
    """A chain of relations. `case` is what the problem's letter stands for there ("n = 2k" before it), if anything."""

    index: int
    sentence: int
    text: str
    terms: tuple[Term, ...]
    links: tuple[Link, ...]
    modulus: int | None
    subject: Subject | None
    case: Value | None
    broken: bool

    @property
    def false(self) -> bool:
        return self.broken or any(link.holds is False for link in self.links)


@dataclass(frozen=True)
class Reading:
    """A proof in the terms of one problem."""

    sentences: tuple[Sentence, ...]
    claims: tuple[Claim, ...]


def interpret(
    sentences: tuple[Sentence, ...], letters: tuple[str, ...], subjects: Sequence[Subject], positive: bool
) -> Reading:
    """The claims of a proof about a problem in `letters[0]`; `positive`: that letter stands for positive numbers."""
    interpreter = _Interpreter(letters, subjects, positive)
    claims = [
        claim for i, sentence in enumerate(sentences) if not sentence.goal for claim in interpreter.claims(i, sentence)
    ]
    return Reading(sentences, tuple(claims))


class _Interpreter:
    """Walks over the sentences in order and keeps what the letters stand for."""

    def __init__(self, letters: tuple[str, ...], subjects: Sequence[Subject], positive: bool) -> None:
        self.main, self.others, self.positive = letters[0] if letters else "", letters[1:], positive
        self.subjects = [(_ending_in(subject.pattern), subject) for subject in subjects]
        self.known: dict[str, Value] = {}
        self.count = 0

    def claims(self, index: int, sentence: Sentence) -> Iterator[Claim]:
        if _CASES_END.search(sentence.skeleton):
            self.known.pop(self.main, None)
        definitions = [(i, d) for i, mention in enumerate(sentence.formulas) if (d := self._definition(mention))]
        cases = [i for i, (name, _) in definitions if name == self.main]
        for _, (name, found) in definitions:
            if name != self.main or cases == cases[:1]:  # one case, wherever it stands, rules its sentence
                self.known[name] = found
        modulus = None
        for i, mention in enumerate(sentence.formulas):
            if i in cases:
                self.known[self.main] = dict(definitions)[i][1]
            if mention.lead.endswith("mod") and not mention.chain.relations:
                number = mention.terms[0].value.number if mention.terms[0].value is not None else None
                modulus = int(number) if number is not None and number >= 1 else None
            claim = self._claim(index, sentence, mention, modulus)
            if claim is not None:
                yield claim

    def _definition(self, mention: Mention) -> tuple[str, Value] | None:
        """The letter and its value when the formula says what a letter stands for: the problem's, or one of its own."""
        first = mention.terms[0].node
        if not isinstance(first, Letter) or mention.chain.opened or mention.chain.relations[:1] != ("=",):
            return None
        second = mention.terms[1]
        if second.value is None or first.name in second.letters or first.name in self.others:
            return None
        if second.value.size > MAX_DEFINITION:
            return None
        return first.name, second.value

    def _claim(self, index: int, sentence: Sentence, mention: Mention, modulus: int | None) -> Claim | None:
        subject = self._subject(mention)
        terms = tuple(self._here(term) for term in mention.terms)
        relations = mention.chain.relations
        modulus = mention.chain.modulus or modulus
        if subject is not None:
            node = parse(subject.text)
            terms = (Term(None, self._value(node), letters_of(node), ""), *terms)
            relations = relations if mention.chain.opened else ("=", *relations)
        elif mention.chain.opened:
            relations = relations[1:]
        if not relations:
            return None
        links = [
            self._link(terms[i], relation, terms[i + 1], None if relation == "=" and "≡" in relations else modulus)
            for i, relation in enumerate(relations)
        ]
        if subject is not None and subject.modulus is not None:
            links[0] = self._link(terms[0], relations[0], terms[1], subject.modulus)
        broken = mention.chain.broken or sentence.denied
        self.count += 1
        case = self.known.get(self.main)
        return Claim(self.count - 1, index, mention.text, terms, tuple(links), modulus, subject, case, broken)

    def _subject(self, mention: Mention) -> Subject | None:
        for pattern, subject in self.subjects:
            match = pattern.search(mention.lead)
            if match is not None and (mention.chain.opened or match["verb"]):
                return subject
        return None

    def _here(self, term: Term) -> Term:
        """The term with the letters replaced by what they stand for at this place."""
        if term.node is None or term.letters.isdisjoint(self.known):
            return term
        return replace(term, value=self._value(term.node))

    def _value(self, node: Node) -> Value | None:
        try:
            return evaluate(node, self.known)
        except NoValue:
            return None

    def _link(self, left: Term, relation: str, right: Term, modulus: int | None) -> Link:
        return Link(left, relation, right, self._holds(left, relation, right, modulus))

    def _holds(self, left: Term, relation: str, right: Term, modulus: int | None) -> bool | None:
        if left.value is None or right.value is None:
            return False
        if relation in ("=", "≡", "!="):
            if relation == "=" and isinstance(left.node, Letter) and left.node.name not in right.letters:
                return None  # a definition
            if relation == "≡" and modulus is None:
                return False
            same = left.value.congruent(right.value, modulus) if modulus else left.value.equals(right.value)
            return same != (relation == "!=")
        if modulus is not None:
            return False  # remainders have no order
        if isinstance(left.node, Letter) or isinstance(right.node, Letter):
            return None  # a condition: x > 0
        letters = left.value.letters | right.value.letters
        if not letters:
            return _compare(left.value, relation, right.value)
        return self._refuted(letters, left.value, relation, right.value)

    def _refuted(self, letters: frozenset[str], left: Value, relation: str, right: Value) -> bool | None:
        """False when an inequality in one letter fails at a number; None otherwise, for a sample proves nothing."""
        if len(letters) != 1:
            return None
        name = next(iter(letters))
        for number in _SAMPLES:
            if self.positive and number <= 0:
                continue
            try:
                if not _compare(left.at(name, number), relation, right.at(name, number)):
                    return False
            except NoValue:
                continue
        return None


@lru_cache(maxsize=256)
def _ending_in(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\s)(?:{pattern})(?P<verb>\s(?:is|are|becomes|gives|was))?$")


def _compare(left: Value, relation: str, right: Value) -> bool:
    a, b = left.number, right.number
    return a is not None and b is not None and ORDER[relation](a, b)
