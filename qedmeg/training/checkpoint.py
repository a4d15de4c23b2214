"""Training checkpoints: Megatron's torch_dist files, written in the background, complete or not there at all.

A checkpoint is written into `step_N.START.partial`, brought to disk, renamed to `step_N`, then marked complete.
It loads bit-exactly at the topology that wrote it, and correctly at any other.
"""

import ctypes
import errno
import gc
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_items_iter
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from qedmeg.config import CheckpointConfig
from qedmeg.errors import RunFailed, UserError
from qedmeg.lineage import stages as lineage
from qedmeg.model import checkpoint_folder
from qedmeg.model.families import Architecture
from qedmeg.model.weights import checkpoint_metadata
from qedmeg.training.optimizer import Optimizer
from qedmeg.training.policy import Policy

WRITE_SECONDS = 3600.0
"""How long the files of one checkpoint may take to be written, before the run says that they are not."""
ROOM = 1 << 20
"""Bytes: a disk on which fewer are free is full, whatever the error is called."""


CRITIC = "critic."
"""Before the keys of a critic's tensors: those of the policy's weights are the same as in any checkpoint."""


@dataclass
class TrainedModel:
    """A model with its optimizer and schedule."""

    policy: Policy
    optimizer: Optimizer
    scheduler: Any


@dataclass
class TrainingState(TrainedModel):
    """Everything that a checkpoint holds: what is trained, and where the run stands."""

    loader: Any
    critic: TrainedModel | None = None
    """The second model of a run that trains one."""


def latest(run_dir: Path) -> tuple[int, Path] | None:
    """The newest complete checkpoint of a run and its step, or None."""
    found = checkpoint_folder.complete_checkpoints(run_dir)
    return max(found.items()) if found else None


class Checkpointer:
    """Writes a run's checkpoints and removes the ones that need not be kept."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, hf_files: Path, state: TrainingState) -> None:
        """`hf_files` is a folder with the config and tokenizer files that go into each checkpoint."""
        self.run_dir, self.config, self.hf_files, self.state = run_dir, config, hf_files, state
        self.folder = run_dir / checkpoint_folder.CHECKPOINTS
        self._queue = AsyncCallsQueue(persistent=False)
        self._results = _start_results_server()
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            complete = set(checkpoint_folder.complete_checkpoints(self.run_dir).values())
            for path in self.folder.iterdir():  # what a killed run left half written
                if path.name.startswith("step_") and path not in complete:
                    shutil.rmtree(path, ignore_errors=True)  # its writers may be at it for a moment yet
        # Another name for each start: what writers of a killed run still write goes into no checkpoint of this one.
        start = [os.urandom(4).hex()]
        dist.broadcast_object_list(start)
        self._start = start[0]

    def save(self, step: int) -> None:
        """Begin to write the checkpoint of a step; it is complete after a later `poll`, or at once if not in the
        background.

        Raises:
            UserError: the disk is full.
        """
        self.wait()
        partial_folder = self.folder / f"step_{step:08d}.{self._start}.partial"
        with self._disk_full_told():
            if dist.get_rank() == 0:
                partial_folder.mkdir()
            dist.barrier()
            request = dist_checkpointing.save(
                _state_dict(self.state, step, loading=False),
                str(partial_folder),
                async_sharded_save=True,
                content_metadata=_content_metadata(),
            )
            request.add_finalize_fn(partial(self._publish, step, partial_folder))
            self._queue.schedule_async_request(request)
        if not self.config.background:
            self.wait()

    def poll(self) -> None:
        """Finish a checkpoint whose files are all written. Every rank calls it after every step.

        Raises:
            UserError: the disk is full.
        """
        with self._disk_full_told():
            self._queue.maybe_finalize_async_calls(blocking=False)

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if there is one.

        Raises:
            RunFailed: its writers have not ended within `WRITE_SECONDS`.
            UserError: the disk is full.
        """
        deadline = time.monotonic() + WRITE_SECONDS
        self.poll()
        while self._queue.get_num_unfinalized_calls():
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{self.folder}: the checkpoint writers of rank {dist.get_rank()} or of another rank have not "
                    f"ended after {WRITE_SECONDS:.0f} s; is the disk full or gone? The last complete checkpoint stands"
                )
            time.sleep(0.02)
            self.poll()

    def close(self) -> None:
        """Finish, and end the writers."""
        self.wait()
        self._queue.close()
        filesystem_async._results_queue = None
        self._results.shutdown()

    def _publish(self, step: int, partial_folder: Path) -> None:
        if dist.get_rank() == 0:
            policy = self.state.policy
            info = checkpoint_folder.CheckpointInfo(
                architecture=policy.model.name,
                dtype=str(policy.config.params_dtype).removeprefix("torch."),
                vocabulary=policy.model.vocabulary,
                tp=policy.parallelism.tp,
                pp=policy.parallelism.pp,
                ep=policy.parallelism.ep,
            )
            checkpoint_folder.write_description(partial_folder, info, self.hf_files)
            lineage.write_of_checkpoint(self.run_dir, partial_folder, step)
            checkpoint_folder.publish(partial_folder, self.folder / f"step_{step:08d}")
            self._prune()
        dist.barrier()

    @contextmanager
    def _disk_full_told(self) -> Iterator[None]:
        """Writers of several kinds tell a full disk by errors of many kinds, of which the text is the same."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            if os.strerror(errno.ENOSPC) not in str(error) and shutil.disk_usage(self.folder).free > ROOM:
                raise
            raise UserError(
                f"{self.folder}: {os.strerror(errno.ENOSPC)}: a checkpoint cannot be written, and the last whole one "
                "stands; make room, and run the same command again, which goes on from there"
            ) from error

    def _prune(self) -> None:
        complete = checkpoint_folder.complete_checkpoints(self.run_dir)
        kept_for_good = {step for step in complete if self.config.keep_every and step % self.config.keep_every == 0}
        for step in sorted(complete)[: -self.config.keep_last]:
            if step not in kept_for_good:
                _remove(complete[step])


def _start_results_server() -> SyncManager:
    """The process through which Megatron's writers report, forked here.

    Megatron would start one that imports the whole program once more, outlives a rank that is killed, and ends at the
    SIGTERM that SLURM sends to all processes of a job, in the midst of the save that the rank begins on it.
    """
    server = SyncManager(ctx=multiprocessing.get_context("fork"))
    gc.disable()  # in the fork for good: to collect the rank's process groups there, without their threads, kills it
    try:
        server.start(_serve_until_the_rank_ends)
    finally:
        gc.enable()
    filesystem_async._results_queue = server.Queue()
    return server


def _serve_until_the_rank_ends() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kill_when_parent_ends = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(kill_when_parent_ends, signal.SIGKILL)


def load(folder: Path, state: TrainingState) -> int:
    """Take everything over from a checkpoint; the step that it was written at.

    Random states are taken over at the same topology only.
    """
    loaded = dist_checkpointing.load(_state_dict(state, 0, loading=True, folder=folder), str(folder))
    _take_over(state, loaded)
    if state.critic is not None:
        _take_over(state.critic, loaded["critic"])
    state.loader.load_state_dict(loaded["loader"])
    if "random" in loaded:
        _set_random_state(loaded["random"])
    return int(loaded["step"])


def require_same(found: checkpoint_folder.Checkpoint, model: Architecture, dtype: torch.dtype) -> None:
    """Refuse to go on from the checkpoint of another model, or in another precision.

    Raises:
        UserError: naming the folder and the first field that differs.
    """
    then, now = asdict(found.model), asdict(model)
    then["dtype"], now["dtype"] = found.info.dtype, str(dtype).removeprefix("torch.")
    for field, value in now.items():
        if then[field] != value:
            raise UserError(
                f"{found.path}: the run's checkpoint is of another model: {field} {then[field]}, and now {value}; give "
                "another run_dir to begin anew, or the settings that the run began with to go on"
            )


def _content_metadata() -> dict[str, Any]:
    """What the layout was, for other programs that read the checkpoint: the metadata without process groups."""
    return {name: value for name, value in checkpoint_metadata().items() if name != "dp_cp_group"}


def _model_state(policy: Policy, prefix: str) -> dict[str, Any]:
    """Megatron's sharded state of each model chunk, without the empty `_extra_state` objects. `prefix` goes before the
    keys in the checkpoint."""
    states = {}
    for number, chunk in enumerate(policy.chunks):
        state = chunk.sharded_state_dict(metadata=checkpoint_metadata())
        for owner, name, value in list(nested_items_iter(state)):
            if isinstance(value, ShardedObject) and value.data is None:
                del owner[name]
        add_prefix_for_sharding(state, prefix)
        states[f"model{number}"] = state
    return states


def _trained_state(trained: TrainedModel, loading: bool, prefix: str = "") -> dict[str, Any]:
    model = _model_state(trained.policy, prefix)
    # keys of several chunks do not collide: the optimizer finds each parameter by identity
    merged = {f"{chunk}.{name}": value for chunk, values in model.items() for name, value in values.items()}
    return {
        **model,
        "optimizer": trained.optimizer.sharded_state_dict(merged, checkpoint_metadata(), loading),
        "updates": trained.optimizer.updates,
        "scheduler": trained.scheduler.state_dict(),
    }


def _state_dict(state: TrainingState, step: int, loading: bool, folder: Path | None = None) -> dict[str, Any]:
    result = {
        **_trained_state(state, loading),
        "loader": state.loader.state_dict(),
        "step": step,
        "topology": _topology(state.policy),
    }
    if state.critic is not None:
        result["critic"] = _trained_state(state.critic, loading, CRITIC)
    if folder is None or dist_checkpointing.load_common_state_dict(str(folder))["topology"] == result["topology"]:
        rank, size = dist.get_rank(), dist.get_world_size()
        result["random"] = ShardedObject("random", _random_state(), (size,), (rank,), replica_id=0)
    return result


def _topology(policy: Policy) -> dict[str, int]:
    return {**asdict(policy.parallelism), "world": dist.get_world_size()}


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed no longer counts as complete."""
    (folder / checkpoint_folder.MARKER).unlink()
    shutil.rmtree(folder)


def _take_over(trained: TrainedModel, loaded: dict[str, Any]) -> None:
    for number, chunk in enumerate(trained.policy.chunks):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{number}"], strict=False)
        missing = [name for name in missing if not name.endswith("_extra_state")]
        if missing or unexpected:
            raise RuntimeError(f"checkpoint and model disagree: missing {missing}, unexpected {unexpected}")
    trained.optimizer.load_state_dict(loaded["optimizer"], loaded["updates"])
    trained.scheduler.load_state_dict(loaded["scheduler"])


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "megatron": get_cuda_rng_tracker().get_states(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(state["megatron"])
