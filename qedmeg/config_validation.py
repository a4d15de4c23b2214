"""What can be set of validation in reinforcement learning."""

from typing import Any

from pydantic import Field

from qedmeg.settings import Settings


class ValidationConfig(Settings):
    """A benchmark that the weights are scored on while they are trained, by the harness of `eval/` and by the run's own
    grader."""

    every: int = Field(default=25, ge=1)
    """Steps between validations. The weights that the run begins and ends with are validated too."""
    benchmark: str
    """What is answered: as --benchmark of eval/run.py, `embedded`, a published one's name, or a file of problems."""
    data: str | None = None
    """The benchmark's file or hub id, where it is published elsewhere."""
    problems: int | None = Field(default=None, ge=1)
    """Only the first so many. None: all; of the embedded ones 108."""
    seed: int = 0
    """Of the embedded problems."""
    samples: int = Field(default=1, ge=1)
    """Attempts at each problem."""
    greedy: bool = False
    """One attempt more at each problem at temperature 0, with a score of its own."""
    scaffold: str = "single"
    """How a problem is answered: as --scaffold of eval/run.py. The trained model has all of its roles."""
    scaffold_settings: dict[str, Any] = {}  # noqa: RUF012  (frozen)
    """What is set of the scaffold, such as {rounds: 2}; of `single`, {prompt: ...} where the model is trained on other
    words than the harness's."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a reply. None: rollout.max_tokens."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt and reply, in tokens, for scaffolds whose prompts hold replies. None: that of rollouts, or of the
    longest problem with max_tokens."""
    budget: int | None = Field(default=None, ge=1)
    """Most tokens that an attempt may generate. None: no limit."""

    def is_due(self, version: int, last: int) -> bool:
        """Whether the weights after `version` of a run's `last` steps are validated."""
        return version % self.every == 0 or version == last
