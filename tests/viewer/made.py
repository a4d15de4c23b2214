"""Files for the viewer's tests: an evaluation of two models with a scaffold, and a training run."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from qedmeg.data.problems import generate
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.grading.rubric import Rubric, RubricItem
from qedmeg.reasoning.call import Call, Message, Reply
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.store import STORE_FILE, Store

ITEMS = Rubric(
    (
        RubricItem("bound", 3, "Shows that $f(n) \\le n^2$ for every $n \\ge 1$."),
        RubricItem("equality", 3, "Says when equality holds, and why."),
        RubricItem("conclusion", 1, "Says what follows."),
    )
)
EMBEDDED = generate("heldout", 1, seed=0)[0]
PROBLEMS = [
    BenchmarkProblem(
        ProofProblem(
            "algebra-1",
            "Let $a, b, c$ be positive real numbers with $abc = 1$. Prove that\n\n"
            "$$\\frac{1}{a^3(b+c)} + \\frac{1}{b^3(c+a)} + \\frac{1}{c^3(a+b)} \\ge \\frac{3}{2}.$$",
            ITEMS,
            "Put $x = 1/a$, $y = 1/b$, $z = 1/c$, so that $xyz = 1$. The sum becomes\n"
            "\\begin{align*}\n\\sum \\frac{x^2}{y+z} &\\ge \\frac{(x+y+z)^2}{2(x+y+z)} \\\\ &\\ge \\frac{3}{2}."
            "\n\\end{align*}",
        ),
        "IMO-medium",
        "Algebra",
    ),
    BenchmarkProblem(
        ProofProblem("geometry/1", "Prove that the three altitudes of a triangle meet in a point.", "7 for a proof."),
        "IMO-easy",
        "Geometry",
    ),
    BenchmarkProblem(EMBEDDED, str(EMBEDDED.level), EMBEDDED.family),
    BenchmarkProblem(AnswerProblem("answer-1", "What is $6 \\cdot 7$?", "42"), "", "Arithmetic"),
]
PROOF = (
    "Substitute $x = 1/a$, $y = 1/b$, $z = 1/c$. Then $xyz = 1$, and since $\\frac{1}{a^3(b+c)} = "
    "\\frac{x^2}{y+z}$ we must show\n\n\\[ S = \\frac{x^2}{y+z} + \\frac{y^2}{z+x} + \\frac{z^2}{x+y} \\ge \\frac32. "
    "\\]\n\n**Step 1.** By the Cauchy-Schwarz inequality in Engel form,\n\\begin{align*}\nS &\\ge "
    "\\frac{(x+y+z)^2}{2(x+y+z)} \\\\\n  &= \\frac{x+y+z}{2}.\n\\end{align*}\n\n**Step 2.** By AM-GM, "
    "\\(x + y + z \\ge 3\\sqrt[3]{xyz} = 3\\), with equality exactly when $x = y = z = 1$. Hence $S \\ge \\frac32$, "
    "with equality if and only if $a = b = c = 1$. $\\blacksquare$"
)
GRADER = "judge-v1"


def graded(*earned: int, reason: str = "It is there: $x^2 \\ge 0$.") -> Graded:
    """Points for the items of `ITEMS`."""
    items = tuple(
        ItemGrade(item.name, points, item.points, reason) for item, points in zip(ITEMS.items, earned, strict=True)
    )
    return Graded(sum(earned), 7, items, GRADER, Cost(1, 900, 200, Decimal("0.003")))


def whole(points: float, reason: str = "Complete.") -> Graded:
    return Graded(points, 7, (ItemGrade("proof", points, 7, reason),), GRADER)


def attempt(problem: str, sample: int, text: str, tokens: int, ended: str = "done") -> Attempt:
    return Attempt(problem, sample, text, ended, tokens, 1, 300, tokens, Decimal("0.0125"), 4.5)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: the one of a test that drives a browser has a loop already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


class Evaluation:
    """A file of results that is being made."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results = Results(path)

    def run(self, name: str, model: str, problems: list[BenchmarkProblem], scaffold: str = "single") -> None:
        self.results.begin(EvaluationRun(name, "proofs", model, scaffold, 2, {"model": model}), problems)

    def add(self, run: str, attempts: list[tuple[Attempt, Grade | None]], grader: str = GRADER) -> None:
        async def write() -> None:
            for one, grade in attempts:
                await self.results.add_attempt(run, one)
                if grade is not None:
                    await self.results.add_grade(run, StoredGrade(one.problem, one.sample, grader, 0, grade))

        _run(write())

    def calls(self, run: str, problem: str, sample: int, calls: list[tuple[Call, Reply]]) -> None:
        async def write() -> None:
            log = self.results.log(run, problem, sample)
            for call, reply in calls:
                await log.keep("small", call, reply)

        _run(write())


def call(path: str, role: str, prompt: str, text: str, thinking: str = "", tokens: int = 100) -> tuple[Call, Reply]:
    messages = (Message("system", "You prove theorems."), Message("user", prompt))
    return Call(path, role, messages), Reply(text, thinking, "stop", tokens, Cost(1, 50, tokens), 1.25)


def evaluation(path: Path) -> Path:
    """Two runs: of each problem two attempts, of which one could not be graded and one is not graded yet."""
    made = Evaluation(path)
    made.run("small-cache", "small", PROBLEMS, "reasoning cache")
    made.run("large", "large", PROBLEMS)
    made.add(
        "small-cache",
        [
            (attempt("algebra-1", 0, PROOF, 5_200), graded(3, 2, 1)),
            (attempt("algebra-1", 1, "By symmetry it is clear that $a = b = c$.", 900, "length"), graded(0, 0, 0)),
            (attempt("geometry/1", 0, "The altitudes are concurrent.", 1_500), Failed("timeout", "no answer in 600 s")),
            (attempt("geometry/1", 1, "See above.", 2_500), None),
            (attempt("answer-1", 0, "42", 40), Graded(1, 1, (ItemGrade("answer", 1, 1, "equal"),), GRADER)),
        ],
    )
    made.add(
        "large",
        [
            (attempt("algebra-1", 0, PROOF, 9_800), graded(3, 3, 1)),
            (attempt("geometry/1", 0, "Ceva's theorem.\n\n" + "A line. " * 30, 3_000), whole(6)),
            (attempt(EMBEDDED.id, 0, "It is even.", 80), whole(1, "Says what is to be proved.")),
        ],
    )
    made.add("large", [(attempt("algebra-1", 0, "", 0), graded(3, 0, 1))], grader="judge-v2")
    made.calls(
        "small-cache",
        "algebra-1",
        0,
        [
            call("round 1/prove", "prover", "Prove $a$.", "A first try.", "Let me think: $b$."),
            call("round 1/verify 1", "verifier", "Is it so?", "No."),
            call("round 1/verify 2", "verifier", "Is it so?", "Yes."),
            call("round 2/prove", "prover", "Again.", PROOF, tokens=4_000),
            call("round 2/verify 1", "verifier", "Is it so?", "Yes, it is."),
        ],
    )
    made.results.close()
    return path


def training(run_dir: Path) -> Path:
    """A run folder: one problem whose rows are at hand and one whose are not, three rollouts each."""
    run_dir.mkdir(parents=True, exist_ok=True)
    store = Store(run_dir / STORE_FILE, {})
    tokens_T = np.arange(9, dtype=np.int32)
    for number, problem in enumerate(("known", "gone")):
        store.begin_group(number, problem, tokens_T, 3)
        for place, grade in enumerate((whole(7), whole(2), Failed("unreadable answer", "no JSON"))):
            sample = Sample(tokens_T, tokens_T, np.zeros(9, dtype=np.float32), ((number, 0), (number + 1, 4)), "stop")
            store.add_grade(store.add_sample(number, place, 0, sample, f"Proof {place}: $x^{place}$."), grade)
        store.make_ready(number)
        store.assign(number, [number], {})
    store.close()
    rows = run_dir / "rows.jsonl"
    rows.write_text('{"id": "known", "problem": "Prove that $1 < 2$.", "rubric": "7 for a proof."}\n')
    (run_dir / "config.yaml").write_text(f"data: {{train: {rows}}}\nrun_dir: {run_dir}\n")
    return run_dir
