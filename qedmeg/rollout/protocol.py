"""What the trainer's rank 0 and the rollout process say to each other: JSON objects, one a line, over two pipes.

    to it     {"id": n, "method": "batch", "arguments": {"step": 3}}
    from it   {"id": n, "result": ...}  or  {"id": n, "error": {"kind": ..., "message": ..., "name": ...}}
              {"ready": true}           once, when its engines are up
              {"say": "..."}            for people
              {"alive": true}           every few seconds
              {"fatal": {"kind": ..., "message": ...}}, the last line

When the pipe to it is closed, or its parent is gone, it ends.
"""

from pathlib import Path
from typing import Literal

from qedmeg.config import GraderConfig
from qedmeg.config_rc import CacheConfig
from qedmeg.config_rl import AdvantageConfig, ProblemConfig, RolloutConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.errors import RunFailed
from qedmeg.settings import Settings

CONFIG_FILE = "rollout_process.yaml"
SECONDS_BETWEEN_SIGNS = 2.0
"""How often it says that it is alive."""

ErrorKind = Literal["user", "run failed", "engine lost", "weights needed", "failed"]
"""`user`: a UserError. `run failed`: a RunFailed. `engine lost`: the engine `name` did not do what it was asked.
`weights needed`: the engines must be sent the weights before the batch can be made. `failed`: all else."""


class EngineLost(RunFailed):
    """An engine failed or did not answer in time; `name` is its own, `reason` what was seen of it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # as they are: an exception goes from rank to rank by its arguments
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class WeightsNeeded(Exception):
    """No engine has the weights that it should have, being started anew or after a failed transfer: they must be sent
    them before a batch can be made."""


class ProcessConfig(Settings):
    """What the rollout process is told, resolved: sections of the run's own settings."""

    run_dir: Path
    """Folder of the run."""
    model_folder: Path
    """Hugging Face folder of the model: its config and tokenizer."""
    data: ProblemConfig
    rollout: RolloutConfig
    grader: GraderConfig
    advantage: AdvantageConfig
    trainer_gpus: int = 0
    """So many of the GPUs that the process sees, the first, are the trainer's ranks'."""
    cache: CacheConfig | None = None
    """None: groups are of the problems in their order."""
    validation: ValidationConfig | None = None
    """None: weights are not validated."""
