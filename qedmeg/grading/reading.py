"""From the text of a proof to its sentences and formulas: tolerant of how things are written, not of what is said."""

import re
from dataclasses import dataclass
from functools import lru_cache

from qedmeg.grading.algebra import NoValue, Value, evaluate
from qedmeg.grading.forms import shape
from qedmeg.grading.formula import Chain, Letter, Node, Number, OutOfSteps, Parser, Power, Product, Root, tokenize

MAX_CHARACTERS = 8_000  # the embedded proofs have about 300
MAX_SENTENCES = 120
MAX_JOINED = 12  # sides of a formula that words hold together

# What the same thing is called elsewhere: Unicode, light LaTeX, words for relations. Applied in this order.
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\n\s*\n", ". "),
        (
            r"(?<=[\d)])\n\s*(?=\((?!\s?mod)|[a-z]\b)|(?<=\b[a-z])\n\s*(?=\((?!\s?mod))",
            " , ",
        ),  # lines do not multiply each other
        (r"[−–]", "-"),
        (r"[·×⋅∙∗]", "*"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"⁴", "^4"),
        (r"[≤⩽]", "<="),
        (r"[≥⩾]", ">="),
        (r"≠", "!="),
        (r"√", " sqrt "),
        (r"\u2019", "'"),
        (r"\*\*", "^"),
        (r"\\[td]?frac\s*\{([^{}]{1,80})\}\s*\{([^{}]{1,80})\}", r"((\1)/(\2))"),
        (r"\\(?:text|mathrm)\s*\{([^{}]{0,80})\}", r" \1 "),
        (r"\\pmod\s*\{([^{}]{1,20})\}", r" (mod \1)"),
        (r"\\(?:bmod|mod)(?![a-z])", " mod "),
        (r"\\(?:cdot|times|ast)(?![a-z])", "*"),
        (r"\\(?:leq?|leqslant)(?![a-z])", "<="),
        (r"\\(?:geq?|geqslant)(?![a-z])", ">="),
        (r"\\neq?(?![a-z])", "!="),
        (r"\\equiv(?![a-z])", "≡"),
        (r"\\mid(?![a-z])", " divides "),
        (r"\\(?:sqrt)(?![a-z])", " sqrt "),
        (r"\\(?:gcd)(?![a-z])", " gcd "),
        (r"\\(?:left|right)(?![a-z])|\\[()\[\],;! ]|\$", " "),
        (r"\\[a-z]+", " "),
        (r"[{\[]", "("),
        (r"[}\]]", ")"),
        (r"\s+", " "),
        (r"==+", "="),
        (r"\bmodulo\b", "mod"),
        (r"\b(?:greatest common divisor|highest common factor)\b", "gcd"),
        (r"\bgcd\s*\([^(),]{1,40},[^(),]{1,40}\)", "gcd"),
        (r"\bhalf of (\d+)", r"\1/2"),
        (r"\btwice (\d+)", r"2 * \1"),
        (r"(\d) squared\b", r"\1^2"),
        (r"(?<=\d) times (?=\d)", " * "),
        (r"(?<=\d) plus (?=\d)", " + "),
        (r"(?<=\d) minus (?=\d)", " - "),
        (r"\b(?:is |are )?(?:at least|(?:greater than|bigger than)? ?or equal to|(?:no|not|never) less than)\b", ">="),
        (r"\b(?:is |are )?(?:at most|(?:no|not|never) (?:more|greater) than)\b", "<="),
        (r"\b(?:is |are )?(?:strictly )?(?:greater|more|larger|bigger) than\b", ">"),
        (r"\b(?:is |are )?(?:strictly )?(?:less|smaller) than\b", "<"),
        (r"\b(?:(?:is |are )?(?:never|not)|cannot be|can't be) negative\b|\b(?:is |are )?non-?negative\b", ">= 0"),
        (r"\bis (?:always |strictly )?positive\b", "> 0"),
        (r"\b(?:is |are )?(?:equal to|equals?)\b", "="),
        (r"\bis congruent to\b", "≡"),
        (r"\bit follows that\b|\bthat is\b", ", "),
    ]
]

# Words that join sentences and decide nothing.
_JOINING = re.compile(
    r"the|an|a|so|hence|thus|therefore|then|consequently|accordingly|now|also|we|have|get|obtain|see|find|know|that"
    r"|which|since|because|as|note|observe|notice|clearly|indeed|finally|next|moreover|furthermore|similarly|likewise"
    r"|again|here|where|with|but|thereby|altogether|firstly|secondly|thirdly|lastly|i|our|us"
)
_GOAL = re.compile(r"(?:to|let|want|need|must|will|shall|it remains to|our goal is to|goal is to)? ?(?:to )?"
                   r"(?:prove|show|claim #|verify|check|demonstrate)\b")  # fmt: skip
_DENIED = re.compile(r"\b(?:false|wrong|incorrect|untrue|not true|isn't|doesn't|don't|aren't)\b")
_SENTENCE_END = re.compile(r"\.(?!\d)|(?<!\d)\.|[;!?](?!=)")


@dataclass(frozen=True)
class Term:
    """One side of a formula. `node` is None for what the text names in words ("the value"); `value` for nonsense.

    `shape` is the form it is written in, see `forms.shape`.
    """

    node: Node | None
    value: Value | None
    letters: frozenset[str]
    shape: str


@dataclass(frozen=True)
class Mention:
    """A formula where it stands: `lead` is what the sentence says between the formula before and this one."""

    chain: Chain
    terms: tuple[Term, ...]
    lead: str
    text: str


@dataclass(frozen=True)
class Sentence:
    """`skeleton` is the sentence in plain words with `#` for each of its `formulas`, joining words left out.

    `goal`: it says what is to be shown; `denied`: it says that something is false; `readable` is False when reading
    it took too much work.
    """

    skeleton: str
    formulas: tuple[Mention, ...]
    goal: bool
    denied: bool
    readable: bool

    def argument(self, pattern: str) -> Mention | None:
        """The formula that the group `(#)` of `pattern` finds in the skeleton; None when the pattern is not there."""
        match = re.search(pattern, self.skeleton)
        return self.formulas[self.skeleton.count("#", 0, match.start(1))] if match is not None else None


def read(proof: str) -> tuple[Sentence, ...] | None:
    """The sentences of a proof; None when it is too long to be one."""
    if len(proof) > MAX_CHARACTERS:
        return None
    text = proof.lower().replace("\r", "\n")
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    pieces = [piece.strip() for piece in _SENTENCE_END.split(text)]
    pieces = [piece for piece in pieces if piece]
    return None if len(pieces) > MAX_SENTENCES else tuple(_sentence(piece) for piece in pieces)


@lru_cache(maxsize=4096)
def _sentence(text: str) -> Sentence:
    parser = Parser(tokenize(text))
    words: list[str] = []  # since the formula before
    skeleton: list[str] = []
    mentions: list[Mention] = []
    readable = True
    try:
        while parser.at < len(parser.tokens):
            start = parser.at
            chain = parser.chain()
            if chain is None:
                token = parser.tokens[parser.at]
                if token.kind in ("word", "letter") and not _JOINING.fullmatch(token.text):
                    words.append(token.text)
                parser.at += 1
                continue
            source = " ".join(token.text for token in parser.tokens[start : parser.at])
            mention = Mention(chain, tuple(_term(node) for node in chain.terms), " ".join(words), source)
            if mentions and _continues(mentions[-1], mention):
                mentions[-1] = _joined(mentions[-1], mention)
            else:
                mentions.append(mention)
                skeleton += [*words, "#"]
            words = []
    except OutOfSteps:
        readable = False
    plain = " ".join(skeleton + words)
    goal, denied = _GOAL.match(plain) is not None, _DENIED.search(plain) is not None
    return Sentence(plain, tuple(mentions), goal, denied, readable)


def _continues(before: Mention, mention: Mention) -> bool:
    """Whether the text goes on with the formula before: "5^2, which = 25", "5^2 is 25"."""
    if len(before.terms) >= MAX_JOINED:
        return False
    if mention.chain.opened:
        return mention.lead == ""
    named = len(before.terms) == 1 and isinstance(before.terms[0].node, Letter)
    alone = before.lead == "" or (before.lead == "and" and not any(term.letters for term in before.terms))
    return mention.lead == "is" and alone and not named


def _joined(before: Mention, mention: Mention) -> Mention:
    first, second = before.chain, mention.chain
    joint = () if second.opened else ("=",)
    chain = Chain(
        first.terms + second.terms,
        first.relations + joint + second.relations,
        first.opened,
        second.modulus or first.modulus,
        first.broken or second.broken,
    )
    text = f"{before.text} {'' if second.opened else '= '}{mention.text}"
    return Mention(chain, before.terms + mention.terms, before.lead, text)


def _term(node: Node) -> Term:
    try:
        found: Value | None = evaluate(node)
    except NoValue:
        found = None
    return Term(node, found, letters_of(node), shape(node))


def letters_of(node: Node) -> frozenset[str]:
    if isinstance(node, Letter):
        return frozenset(node.name)
    if isinstance(node, Number):
        return frozenset()
    if isinstance(node, Power):
        return letters_of(node.base)
    if isinstance(node, Root):
        return letters_of(node.inside)
    parts = node.factors if isinstance(node, Product) else node.parts
    return frozenset().union(*(letters_of(part) for part in parts))
