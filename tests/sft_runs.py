"""A small fine-tuning run for tests: model folder, rows, settings, and how two checkpoints differ."""

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml

from qedmeg.model.torch_dist import Reader
from tests.checkpoints import make_checkpoint
from tests.data.conftest import MARKED, save_byte_level

ROWS = 40


def write_inputs(folder: Path, family: str = "qwen3", **model: Any) -> Path:
    """`model/`, `rows.jsonl` and `sft.yaml` in a folder; the path of the last. `model` goes into the config."""
    make_checkpoint(folder / "model", family, **({"vocab_size": 400} | model))
    save_byte_level(folder / "model", MARKED)
    rows = [{"prompt": f"Prove that n^2 + {i} is even.", "proof": f"Let n = {i}k; so n is {i}."} for i in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "run_dir": str(folder / "run"),
        "model": {"hf": str(folder / "model")},
        "data": {
            "train": str(folder / "rows.jsonl"),
            "max_length": 64,
            "tokens_per_microbatch": 128,
            "prompts_per_step": 6,
            "cache": str(folder / "cache"),
        },
        "compute": {"precision": "fp32"},
        "optimizer": {"lr": 1e-3, "schedule": "wsd", "warmup_steps": 2},
        "checkpoint": {"save_every": 6, "keep_last": 9},
        "max_steps": 12,
    }
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(config_file: Path, settings: list[str], stop_at: int | None = None) -> int:
    """Train as recipes/sft.py does; runs on each rank of a pool. SIGTERM comes once `stop_at` steps are logged."""
    from qedmeg.config import SFTConfig
    from qedmeg.settings import load_config
    from qedmeg.training import sft

    config = load_config(SFTConfig, config_file, settings)
    random.seed()  # as in a process of its own: what a run goes on with comes from its checkpoint
    np.random.seed()
    if stop_at is not None and os.environ["RANK"] == "0":
        threading.Thread(target=_stop, args=(config.run_dir / "metrics.jsonl", stop_at), daemon=True).start()
    return sft.train(config)


def command(config_file: Path, settings: list[str]) -> tuple[int, str]:
    """Exit status and stderr of recipes/sft.py; runs on each rank of a pool, which has everything imported."""
    from qedmeg.errors import run_command
    from recipes import sft

    sys.argv = ["recipes/sft.py", "--config", str(config_file), *settings]
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            run_command(sft.main)
        except SystemExit as end:
            return int(end.code or 0), text.getvalue()
    raise AssertionError("run_command did not end the process")


def _stop(metrics: Path, steps: int) -> None:
    """SIGTERM to this rank and to all processes that it has started, as SLURM sends it."""
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < steps:
        time.sleep(0.01)
    rank = psutil.Process()
    for process in (*rank.children(recursive=True), rank):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, moments, master weights."""
    found = {}
    with Reader(folder) as reader:
        for key, stored in reader.tensors.items():
            target = torch.empty(stored.shape or (1,), dtype=stored.dtype)
            reader.read_rows(key, 0, target)
            found[key] = target
    return found


def random_state(folder: Path) -> str:
    """A digest of this rank's random states in a checkpoint; runs on each rank of a pool."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    asked = ShardedObject("random", None, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)
    state = dist_checkpointing.load({"random": asked}, str(folder))["random"]
    numbers = [state["python"][1], state["numpy"][1].tolist(), state["torch"].tolist(), state["device"].tolist()]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def differing(one: Path, other: Path) -> list[str]:
    """Keys of tensors that are not equal bit for bit, or only in one of two checkpoints."""
    ours, theirs = tensors(one), tensors(other)
    return sorted(ours.keys() ^ theirs.keys()) + [
        key for key in ours.keys() & theirs.keys() if not torch.equal(ours[key], theirs[key])
    ]
