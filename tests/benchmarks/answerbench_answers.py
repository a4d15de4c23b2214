r"""The short answers of IMO-AnswerBench, each graded by rule against itself and against another problem's.

    python tests/benchmarks/answerbench_answers.py --data ../shared/data/imobench/answerbench_v2.csv

Each is given in a box at the end of a short response. It passes when all are right against themselves, and none against
another problem's, to which they are dealt by a fixed permutation that gives no problem an answer written as its own.
What the rules leave open, for a judge, is stated.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from qedmeg.evaluation.benchmarks import load_benchmark  # noqa: E402
from qedmeg.grading.answer_text import literal, plain  # noqa: E402
from qedmeg.grading.answers import AnswerGrader  # noqa: E402
from qedmeg.grading.grade import Graded  # noqa: E402
from qedmeg.grading.grader import AnswerProblem  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")


def main() -> int:
    """Grade all of them and keep what was found; status 1 where it does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="answerbench_v2.csv of google-deepmind/superhuman")
    found = asyncio.run(measure(parser.parse_args().data))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for name in ("own", "other"):
        print(f"{name}: {found[name]['counts']}, {found[name]['seconds']} s")
    print("passed" if found["passed"] else "FAILED")
    return 0 if found["passed"] else 1


async def measure(data: str) -> dict[str, Any]:
    """Counts of right, wrong and undecided answers, and each that is not as it should be or is undecided."""
    problems = [one.problem for one in load_benchmark("imo-answerbench", data)]
    assert all(isinstance(problem, AnswerProblem) for problem in problems)
    given = [problem.answer for problem in problems]
    grader = AnswerGrader()
    try:
        own = await _grade(grader, problems, given, "right")
        other = await _grade(grader, problems, dealt(given), "wrong")
    finally:
        await grader.close()
    passed = own["counts"] == {"right": len(problems)} and "right" not in other["counts"]
    return {"passed": passed, "answers": len(problems), "own": own, "other": other}


def dealt(answers: list[str]) -> list[str]:
    """The answers, each at the place of one that is written differently: sorted, then turned by the longest run of
    equal ones, so that no run meets itself."""
    texts = [literal(plain(answer)) for answer in answers]
    places = sorted(range(len(answers)), key=lambda place: (texts[place], place))
    turn = max(Counter(texts).values())
    others = [""] * len(answers)
    for rank, place in enumerate(places):
        others[place] = answers[places[(rank + turn) % len(places)]]
    assert all(literal(plain(other)) != text for other, text in zip(others, texts, strict=True))
    return others


async def _grade(grader: AnswerGrader, problems: list[Any], answers: list[str], wanted: str) -> dict[str, Any]:
    started = time.monotonic()
    responses = [f"It follows from what was said before that\n\n$$\\boxed{{{answer}}}$$\n" for answer in answers]
    grades = await asyncio.gather(*(grader.grade(*pair) for pair in zip(problems, responses, strict=True)))
    seconds = time.monotonic() - started
    outcomes = ["undecided" if not isinstance(g, Graded) else "right" if g.points else "wrong" for g in grades]
    return {
        "counts": dict(Counter(outcomes)),
        "seconds": round(seconds, 1),
        "not as wanted": [
            {"id": problem.id, "reference": problem.answer, "answer": answer, "outcome": outcome}
            for problem, answer, outcome in zip(problems, answers, outcomes, strict=True)
            if outcome != wanted
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
