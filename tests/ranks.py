"""Gloo ranks for tests, which stay from call to call."""

import gc
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.forked import processes

DEADLINE = 120.0


class RankPool:
    """Processes that join a new gloo world for each call. They are started when first needed, and kept."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []
        self._store = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._calls = 0

    def __call__(self, function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
        """Run `function(*arguments)` on each rank; its results by rank. A rank's exception is raised here."""
        while len(self._workers) < world_size:
            ours, theirs = processes.Pipe()
            # not daemons: Megatron's checkpoint writers are child processes
            worker = processes.Process(target=_work, args=(theirs,), daemon=False)
            worker.start()
            self._workers.append((worker, ours))
        self._calls += 1
        store = self._store / str(self._calls)
        for rank, (_, pipe) in enumerate(self._workers[:world_size]):
            pipe.send((function, arguments, rank, world_size, str(store)))
        results, failures = [], []
        for rank, (worker, pipe) in enumerate(self._workers[:world_size]):
            ready = wait([pipe, worker.sentinel], DEADLINE if not failures else 5.0)
            if pipe not in ready:
                failures.append(f"rank {rank} " + ("died" if ready else f"did not answer in {DEADLINE:.0f} s"))
                continue
            failed, result = pipe.recv()
            if failed:
                failures.append(f"rank {rank}:\n{result}")
            else:
                results.append(result)
        if failures:
            self.close()  # a rank may hang in a collective: begin afresh
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        """End all ranks."""
        for worker, pipe in self._workers:
            pipe.close()
            worker.join(5)
            if worker.is_alive():
                worker.kill()
        self._workers.clear()


def _work(pipe: Connection) -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    for name in ("freeze", "unfreeze"):  # a run's: what it makes is garbage for the next, and imports never are
        setattr(gc, name, lambda: None)
    while True:
        try:
            function, arguments, rank, world_size, store = pipe.recv()
        except EOFError:
            return
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        try:
            answer = (False, function(*arguments))
        except BaseException:
            answer = (True, traceback.format_exc())
        pipe.send(answer)
        if answer[0]:
            return
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        # Each group has a thread that wakes a hundred times a second: none may stay. Models hold groups, in cycles that
        # are let go one after the other; so do the cache of a method, and a run's answer to signals.
        RotaryEmbedding.forward.cache_clear()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while gc.collect():
            pass
