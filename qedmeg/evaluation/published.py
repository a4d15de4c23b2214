"""Scores that others published, to stand beside those of stored runs.

Sources: the model card of lm-provers/QED-Nano (February 2026) for all scores with a deviation and for IMO-AnswerBench,
and arXiv 2604.04898 for RSA and for what scaffolds take (table 2). Scores are in percent of 7 points, graded by Gemini
3 Pro; in brackets stands the sample deviation of three runs' means. IMO-AnswerBench's number of runs is not stated.
"""

from dataclasses import dataclass

CARD, PAPER = "model card of QED-Nano", "arXiv 2604.04898"
GRADER = "Gemini 3 Pro"
QED_NANO = "QED-Nano"


@dataclass(frozen=True)
class Benchmark:
    """A column of the main table."""

    name: str
    """As runs call it."""
    title: str
    problems: int


@dataclass(frozen=True)
class Score:
    """In percent of full marks."""

    percent: float
    deviation: float | None
    source: str


@dataclass(frozen=True)
class PublishedRow:
    """A model, in a scaffold or alone, and its scores by the name of the benchmark."""

    model: str
    scaffold: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class ScaffoldCost:
    """What a scaffold took on IMO-ProofBench."""

    scaffold: str
    percent: float
    tokens_per_problem: int
    ratio: float
    """To a single turn's tokens."""


PROOFS, PROOFBENCH, ANSWERS = BENCHMARKS = (
    Benchmark("imo-proofbench", "IMO-ProofBench", 60),
    Benchmark("proofbench", "ProofBench", 145),
    Benchmark("imo-answerbench", "IMO-AnswerBench", 400),
)


def _row(
    model: str,
    proofs: tuple[float, float | None],
    proofbench: tuple[float, float | None],
    answers: float | None,
    scaffold: str = "single",
    source: str = CARD,
) -> PublishedRow:
    scores = {PROOFS.name: Score(*proofs, source), PROOFBENCH.name: Score(*proofbench, source)}
    if answers is not None:
        scores[ANSWERS.name] = Score(answers, None, source)
    return PublishedRow(model, scaffold, scores)


MAIN_TABLE = (
    _row("Qwen3-4B-Thinking-2507", (20.4, 2.6), (19.5, 0.9), 55.8),
    _row("QED-Nano-SFT", (39.5, 2.9), (33.3, 0.5), 57.5),
    _row(QED_NANO, (40.0, 0.6), (44.9, 3.4), 67.5),
    _row(QED_NANO, (54.0, 3.7), (54.4, 2.4), None, "deepseek_math"),
    _row(QED_NANO, (56.9, None), (62.6, None), 76.5, "rsa", PAPER),
    _row("Qwen3-30B-A3B-Thinking", (27.6, 1.0), (26.1, 2.4), 67.0),
    _row("Qwen3-235B-A22B-Thinking", (34.1, 0.7), (33.7, 1.1), 70.5),
    _row("Nomos-1", (40.3, 3.5), (28.3, 3.9), 49.0),
    _row("GPT-OSS-20B", (38.3, 1.2), (38.4, 3.9), 61.5),
    _row("GPT-OSS-120B", (43.1, 3.2), (47.5, 1.7), 70.5),
    _row("DeepSeek-Math-V2", (57.9, 2.0), (60.6, 0.1), 75.8),
    _row("Gemini 3 Pro", (58.7, 2.9), (66.7, 3.1), 83.2),
)

SCAFFOLD_TABLE = (
    ScaffoldCost("single", 40.0, 93_690, 1.00),
    ScaffoldCost("reasoning_cache", 44.0, 237_379, 2.53),
    ScaffoldCost("deepseek_math", 54.0, 1_605_879, 17.14),
    ScaffoldCost("rsa", 56.9, 2_045_764, 21.84),
)
"""Of QED-Nano."""
