"""Formulas as proofs write them, read by a small grammar of our own.

    formula := [relation] sum (relation sum)* ["mod" number | "(mod" number ")"]
    sum     := ["+" | "-"] product (("+" | "-") product)*
    product := power (("*" | "/" | nothing) power)*
    power   := primary ["^" exponent]
    primary := number | letter | "(" sum ")" | "sqrt" primary

A proof is hostile text: nothing here calls `eval` or a library's expression parser, nesting and work are bounded, and
a formula that breaks off in the middle is kept and marked `broken`, so that it counts against the proof.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

MAX_DEPTH = 24  # nested parentheses
MAX_STEPS = 4000  # parser steps a sentence; a sentence of a proof takes about 60
MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Letter:
    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Product:
    factors: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Power:
    """`exponent` is -1 for a divisor, and None for what is no small natural number: such a power has no value."""

    base: "Node"
    exponent: int | None


@dataclass(frozen=True, slots=True)
class Root:
    """A square root."""

    inside: "Node"


Node = Number | Letter | Sum | Product | Power | Root


class Token(NamedTuple):
    kind: str  # number, letter, word, relation, operator, mark
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """`terms[0] relations[0] terms[1] relations[1] ...`; one term without a relation is a formula that is named only.

    `opened`: the text begins with a relation (", which = 4"), and `relations[0]` stands before `terms[0]`.
    """

    terms: tuple[Node, ...]
    relations: tuple[str, ...]
    opened: bool
    modulus: int | None
    broken: bool


class OutOfSteps(Exception):
    """The sentence asks for more work than any proof needs."""


class _NoFormula(Exception):
    pass


_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)|(?P<word>[a-z]+(?:'[a-z]+)?)|(?P<relation><=|>=|!=|[=<>≡])"
    r"|(?P<operator>[-+*/^()])|(?P<gap>\s+)|(?P<mark>.)"
)


def tokenize(text: str) -> list[Token]:
    """The tokens of lower-case `text`. A single letter is a variable, save for the words "a" and "i"."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, word = str(match.lastgroup), match.group()
        if kind == "gap":
            continue
        if kind == "number" and len(word) > MAX_DIGITS:
            kind = "mark"
        elif kind == "word" and len(word) == 1:
            kind = "letter"
        tokens.append(Token(kind, word))
    return [_article(tokens, i) if token.text in ("a", "i") else token for i, token in enumerate(tokens)]


def _article(tokens: list[Token], i: int) -> Token:
    """Token `i`, an "a" or an "i": a variable only beside an operator, a relation or after a number."""
    before = tokens[i - 1] if i else None
    after = tokens[i + 1] if i + 1 < len(tokens) else None
    beside = [t for t in (before, after) if t is not None and t.kind in ("operator", "relation")]
    if beside or (before is not None and before.kind == "number"):
        return tokens[i]
    return Token("word", tokens[i].text)


class Parser:
    """Reads formulas out of the tokens of one sentence. Raises `OutOfSteps` when they ask for too much work."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.steps = MAX_STEPS

    def chain(self) -> Chain | None:
        """The longest formula that starts at the token `self.at`; None, and nothing moved, when none does."""
        start = self.at
        opened = self._kind() == "relation"
        relations = [self._take()] if opened else []
        try:
            terms = [self._sum(0)]
        except _NoFormula:
            self.at = start
            return None
        while self._kind() == "relation":
            mark = self.at
            relation = self._take()
            try:
                terms.append(self._sum(0))
            except _NoFormula:
                self.at = mark
                break
            relations.append(relation)
        modulus = self._modulus()
        broken = self._kind() == "relation" or (self._kind() == "operator" and self._text() not in "()")
        return Chain(tuple(terms), tuple(relations), opened, modulus, broken)

    def _kind(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].kind if self.at + ahead < len(self.tokens) else ""

    def _text(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def _take(self) -> str:
        self.steps -= 1
        if self.steps < 0:
            raise OutOfSteps
        self.at += 1
        return self.tokens[self.at - 1].text

    def _modulus(self) -> int | None:
        bracket = self._text() == "("
        if self._text(bracket) != "mod" or self._kind(bracket + 1) != "number":
            return None
        if bracket and self._text(3) != ")":
            return None
        for _ in range(bracket + 1):
            self._take()
        number = self._take()
        if bracket:
            self._take()
        return int(number) if number.isdigit() and int(number) > 0 else None

    def _sum(self, depth: int) -> Node:
        parts = [self._signed(depth)]
        while self._text() in ("+", "-"):
            mark = self.at
            minus = self._take() == "-"
            try:
                part = self._product(depth)
            except _NoFormula:
                self.at = mark
                break
            parts.append(_negative(part) if minus else part)
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))

    def _signed(self, depth: int) -> Node:
        if self._text() == "+":
            self._take()
        elif self._text() == "-":
            self._take()
            return _negative(self._product(depth))
        return self._product(depth)

    def _product(self, depth: int) -> Node:
        factors = [self._power(depth)]
        while True:
            mark = self.at
            operator = self._take() if self._text() in ("*", "/") else ""
            if not operator and not self._multiplies_next():
                break
            try:
                factor = self._power(depth)
            except _NoFormula:
                self.at = mark
                break
            factors.append(Power(factor, -1) if operator == "/" else factor)
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def _multiplies_next(self) -> bool:
        """Whether the next token is a factor without a sign: "2k", "2(k + 1)", "(k + 1)k"."""
        if self._kind() == "letter":
            return self.tokens[self.at - 1].kind == "number" or self.tokens[self.at - 1].text == ")"
        return self._text() in ("(", "sqrt")

    def _power(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _NoFormula
        if self._text() == "-" and self.at and self.tokens[self.at - 1].text in ("*", "/", "+", "-"):
            self._take()
            return _negative(self._power(depth + 1))
        base = self._primary(depth)
        if self._text() != "^":
            return base
        mark = self.at
        self._take()
        try:
            exponent = self._power(depth + 1)
        except _NoFormula:
            self.at = mark
            return base
        if isinstance(exponent, Number) and exponent.value.denominator == 1:
            return Power(base, exponent.value.numerator)
        return Power(base, None)

    def _primary(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _NoFormula
        if self._kind() == "number":
            return Number(Fraction(self._take()))
        if self._kind() == "letter":
            return Letter(self._take())
        if self._text() == "sqrt":
            self._take()
            return Root(self._primary(depth + 1))
        if self._text() != "(":
            raise _NoFormula
        self._take()
        inside = self._sum(depth + 1)
        if self._text() != ")":
            raise _NoFormula
        self._take()
        return inside


def _negative(node: Node) -> Node:
    if isinstance(node, Number):
        return Number(-node.value)
    if isinstance(node, Product):
        return Product((Number(Fraction(-1)), *node.factors))
    return Product((Number(Fraction(-1)), node))


def parse(text: str) -> Node:
    """The tree of one expression of our own making. Raises `ValueError` when `text` is not one expression."""
    tokens = tokenize(text)
    parser = Parser([Token("letter", token.text) if token.text in ("a", "i") else token for token in tokens])
    chain = parser.chain()
    if chain is None or chain.relations or chain.broken or parser.at < len(parser.tokens):
        raise ValueError(f"not an expression: {text!r}")
    return chain.terms[0]
