"""Who grades which kind of problem, of one configuration."""

from qedmeg.config import GraderConfig
from qedmeg.errors import UserError
from qedmeg.grading.answers import AnswerGrader
from qedmeg.grading.grader import AnswerProblem, AnyProblem, Grader, ProofProblem
from qedmeg.grading.panel import make_grader


class Graders:
    """One grader for proofs and one for final answers, each made when it is first needed. Belongs to one event loop."""

    def __init__(self, config: GraderConfig, proofs: Grader | None = None) -> None:
        """`proofs`: the grader of proofs, where it is there already; whoever made it closes it."""
        self._config, self._proofs = config, proofs
        self._made: dict[str, Grader] = {}

    def of(self, problem: AnyProblem) -> Grader:
        """The grader of a problem: final answers by rule and by the judges, proofs by the judges; without judges
        embedded problems by the symbolic checker.

        Raises:
            UserError: it takes a judge, and there is none.
        """
        if isinstance(problem, AnswerProblem):
            return self._once("answers")
        if isinstance(problem, ProofProblem) and not self._config.judges:
            raise UserError(f"problem '{problem.id}': its proofs are graded by a judge, and none is set; give --grader")
        return self._proofs or self._once("proofs")

    async def close(self) -> None:
        """Let go of connections, processes and files."""
        for grader in self._made.values():
            await grader.close()

    def _once(self, kind: str) -> Grader:
        if kind not in self._made:
            self._made[kind] = AnswerGrader(self._config) if kind == "answers" else make_grader(self._config)
        return self._made[kind]
