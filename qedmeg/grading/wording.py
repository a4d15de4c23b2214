"""What sentences say in words: conclusions, and how firmly they are drawn."""

import re
from collections.abc import Callable

from qedmeg.grading.algebra import value
from qedmeg.grading.formula import Letter, Node, Number
from qedmeg.grading.reading import Mention, Sentence, Term

Says = Callable[[Sentence], bool | None]

_NEGATED = re.compile(r"\b(?:not|no|never|cannot|can't|neither|nor|fails?)\b")
_HEDGED = re.compile(
    r"\b(?:may|might|could|should|would|perhaps|probably|possibly|maybe|likely|unlikely|seems?|appears?|almost|nearly"
    r"|sometimes|often|usually|mostly|most|many|some|few|several|certain|only|one|first|second|or|unless|except|if"
    r"|whether|not (?:always|every|all)|assume|suppose|hope|guess|believe|expect|conjecture)\b"
)


def firmly(sentence: Sentence, *, negated: bool = False) -> bool | None:
    """True for a plain statement, None for a hedged one, False for a denial; for `negated` ones the reverse."""
    if _HEDGED.search(sentence.skeleton):
        return None
    return len(_NEGATED.findall(sentence.skeleton)) + sentence.denied == negated


def names_case(sentence: Sentence, letter: str) -> bool:
    """Whether the sentence speaks of one case only: it says what the problem's letter is there."""
    return any(says_what(mention, letter) for mention in sentence.formulas)


def says_what(mention: Mention, letter: str) -> bool:
    """Whether the formula says what `letter` is: "n = 2k"."""
    first = mention.terms[0].node
    return isinstance(first, Letter) and first.name == letter and mention.chain.relations[:1] == ("=",)


def literal(node: Node | None) -> int | None:
    """The whole number that the formula is, if it is written as nothing else."""
    return node.value.numerator if isinstance(node, Number) and node.value.denominator == 1 else None


def number(mention: Mention | None) -> int | None:
    """The whole number that is mentioned, without a left side."""
    return literal(mention.terms[0].node) if mention is not None and len(mention.terms) == 1 else None


def stands_for(term: Term, text: str) -> bool:
    """Whether the term is the expression `text`, however it is written."""
    return term.value is not None and term.value.equals(value(text))


def is_named(mention: Mention | None, text: str) -> bool:
    """Whether the formula is the expression `text`, or an equation that ends in it."""
    return mention is not None and {*mention.chain.relations} <= {"="} and stands_for(mention.terms[-1], text)


def compares(mention: Mention, relation: str, bound: int) -> bool:
    """Whether the formula ends in this comparison with a number: "x > 0"."""
    return mention.chain.relations[-1:] == (relation,) and literal(mention.terms[-1].node) == bound


def divisible(divisor: int, expression: str, letter: str, *, never: bool = False) -> Says:
    """That `expression`, written or named, is divisible by `divisor` (`never`: is not) for every value of `letter`."""

    def says(sentence: Sentence) -> bool | None:
        by = sentence.argument(r"(?:divisible by|multiple of) (#)")
        if by is None or names_case(sentence, letter):
            return None
        what = sentence.argument(r"(#) (?:\w+ ){0,2}(?:divisible by|multiple of)")
        if what is not None and not is_named(what, expression):
            return None
        if number(by) != divisor:
            return False
        return firmly(sentence, negated=never)

    return says
