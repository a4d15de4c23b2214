"""A run's numbers: TensorBoard, a JSONL file for programs, and one progress line for people."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.monitor.budget import VALIDATE, in_order
from qedmeg.monitor.progress import bar

METRICS_FILE = "metrics.jsonl"
TIME_PREFIX = "time/"
"""Of the seconds that a part of a step took, as `TimeBudget` gives them."""

VALIDATION_PREFIX = "validation/"
SCORE, GREEDY = "score", "greedy"
"""Of a validation, in points of 7."""

Note = Callable[[Mapping[str, float]], str]
"""What the progress line says of a training step's metrics."""


def sft_note(metrics: Mapping[str, float]) -> str:
    """`loss 1.2345  5,020 tokens/s`."""
    return f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:,.0f} tokens/s"


def rl_note(metrics: Mapping[str, float]) -> str:
    """`reward 0.43 (3.0 of 7)  lag 0.0  mismatch 2e-6  generate 1.1 s grade 0.2 s train 1.4 s idle 0.1 s`; what a step
    lacks is left out."""
    parts = []
    if "reward" in metrics:
        reward = metrics["reward"]
        parts.append(f"reward {reward:.2f} ({reward * RUBRIC_POINTS:.1f} of {RUBRIC_POINTS})")
    if metrics.get("grades_failed", 0) > 0:
        parts.append(f"{metrics['grades_failed']:.0f} grades failed")
    if "lag_mean" in metrics:
        parts.append(f"lag {metrics['lag_mean']:.1f}")
    if "mismatch" in metrics:
        parts.append(f"mismatch {metrics['mismatch']:.0e}".replace("e-0", "e-").replace("e+00", ""))
    phases = in_order(name.removeprefix(TIME_PREFIX) for name in metrics if name.startswith(TIME_PREFIX))
    if phases:
        parts.append(" ".join(f"{phase} {metrics[TIME_PREFIX + phase]:.1f} s" for phase in phases))
    return "  ".join(parts)


def validation_note(metrics: Mapping[str, float]) -> str:
    """`validation 4.07 [3.61, 4.50] of 7, greedy 4.34, 2 grades failed`; what there is none of is left out."""
    parts = []
    for name, title in ((SCORE, "validation"), (GREEDY, "greedy")):
        if name in metrics:
            bounds = [metrics[f"{name}_{end}"] for end in ("low", "high") if f"{name}_{end}" in metrics]
            interval = " [" + ", ".join(f"{bound:.2f}" for bound in bounds) + "]" if bounds else ""
            parts.append(f"{title} {metrics[name]:.2f}{interval}{' of 7' if name == SCORE else ''}")
        elif name == SCORE:
            parts.append("validation without a score")
    for name, title in (("failed_grades", "grades failed"), ("missing", "attempts are missing")):
        if metrics.get(name, 0) > 0:
            parts.append(f"{metrics[name]:.0f} {title}")
    return ", ".join(parts)


def time_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """What to log of a step's `TimeBudget`: each part, and as `step_time` all but validation, which is no part of a
    step's work."""
    step_time = sum(value for name, value in seconds.items() if name != VALIDATE)
    return {"step_time": step_time, **{f"{TIME_PREFIX}{name}": value for name, value in seconds.items()}}


class MetricsLogger:
    """What NeMo-Aligner's trainers report to, on rank 0; on other ranks it keeps silent.

    A run that goes on from step n forgets what was logged of step n and later by the attempt before. `step_line` makes
    the line that each training step leaves in the log; without it, steps are too many for that, and `sft_note` of the
    last is shown.
    """

    def __init__(
        self,
        run_dir: Path,
        label: str,
        first_step: int,
        total_steps: int,
        *,
        is_main: bool,
        step_line: Note | None = None,
    ) -> None:
        self.path = run_dir / METRICS_FILE
        self.step_line = step_line
        self.is_main = is_main
        self.last: dict[str, float] = {}
        self._validated = ""
        """What the next progress line tells of a validation."""
        self._progress: AbstractContextManager | None = bar(label, total_steps, done=first_step, show=is_main)
        self._bar = self._progress.__enter__()
        if not is_main:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(run_dir) if line["step"] < first_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def log_metrics(self, metrics: dict[str, float], step: int, prefix: str = "") -> None:
        """Write the numbers of a step; `prefix` is 'train/', 'val/' or 'validation/'. A validation is of the weights
        that the step begins with; the next progress line of training tells of it."""
        if prefix == "train/" and {"tokens", "step_time"} <= metrics.keys():
            metrics = {**metrics, "tokens_per_second": metrics["tokens"] / max(metrics["step_time"], 1e-9)}
        numbers = {f"{prefix}{name}": float(value) for name, value in metrics.items()}
        self.last |= numbers
        if prefix == VALIDATION_PREFIX:
            self._validated = validation_note(metrics)
        if prefix == "train/":
            note = (self.step_line or sft_note)(metrics)
            self._bar.advance(note="  ".join(filter(None, (self._validated, note))), keep=self.step_line is not None)
            self._validated = ""
        if not self.is_main:
            return
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def finalize(self) -> None:
        """Bring everything to disk; called once, by the trainer or by whoever ends the run."""
        if self._progress is None:
            return
        self._progress.__exit__(None, None, None)
        self._progress = None
        if self.is_main:
            self._file.close()
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """What a run has logged, a dictionary a line; an unfinished last line (of a killed run) is left out."""
    path = run_dir / METRICS_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
