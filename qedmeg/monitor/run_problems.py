"""The problems that a run's rollouts are of, read again where the run read them."""

from pathlib import Path

from qedmeg.config_rl import ProblemConfig
from qedmeg.data.problems import Problem
from qedmeg.data.prompts import read_problems
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.settings import Settings, load_config


class _RunSettings(Settings, extra="ignore"):
    """The section of a run's config.yaml that says where its problems are."""

    data: ProblemConfig


def problems_of(run_dir: Path, ids: set[str]) -> tuple[list[Problem | ProofProblem], str]:
    """The problems of these ids, and a note where some are not there any more."""
    found: list[Problem | ProofProblem] = []
    missing = set(ids)
    if not missing:
        return found, ""
    try:
        config = load_config(_RunSettings, run_dir / "config.yaml")
        for problem, _ in read_problems(config.data):
            if problem.id in missing:
                missing.remove(problem.id)
                found.append(problem)
            if not missing:
                return found, ""
    except UserError as error:
        return found, f"The statements of the problems below cannot be shown, but their ids: {error}"
    return found, f"{len(missing)} of the problems below are no longer in {config.data.train}; their ids are shown."
