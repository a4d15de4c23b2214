"""A run's numbers: TensorBoard, a JSONL file for programs, and one progress line for people."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from qedmeg.monitor.progress import bar

METRICS_FILE = "metrics.jsonl"


class MetricsLogger:
    """What NeMo-Aligner's trainers report to, on rank 0; on other ranks it keeps silent.

    A run that goes on from step n forgets what was logged of step n and later by the attempt before.
    """

    def __init__(self, run_dir: Path, label: str, first_step: int, total_steps: int, *, is_main: bool) -> None:
        self.path = run_dir / METRICS_FILE
        self.is_main = is_main
        self.last: dict[str, float] = {}
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
        """Write the numbers of a step; `prefix` is 'train/' or 'val/'."""
        numbers = {f"{prefix}{name}": float(value) for name, value in metrics.items()}
        self.last |= numbers
        if prefix == "train/":
            speed = metrics["tokens"] / max(metrics["step_time"], 1e-9)
            numbers["train/tokens_per_second"] = speed
            self._bar.advance(note=f"loss {metrics['loss']:.4f}  {speed:,.0f} tokens/s")
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
