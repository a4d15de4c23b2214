"""Where a trainer's rollouts come from: rank 0 holds the rollout process, the other ranks hear from it.

Also the way back: the trainer's weights to the engines, and the gate that holds both to the same numbers.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from qedmeg import device
from qedmeg.config_rl import RLConfig
from qedmeg.data.prompts import PromptSet
from qedmeg.errors import RunFailed
from qedmeg.rollout import gate
from qedmeg.rollout.client import RolloutClient, WeightsNeeded
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Batch
from qedmeg.rollout.weight_transfer import EngineControl, TransferReport, WeightSender
from qedmeg.training.logprobs import document_logprobs
from qedmeg.training.policy import Policy

HEARTBEAT_SECONDS = 60.0
"""How often ranks that wait for rank 0 hear that it still waits: their collectives time out after minutes."""
TRANSFERS_IN_VAIN = 3
"""After so many the run ends."""
GATE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.15}

T = TypeVar("T")


class RolloutSource:
    """The rollout process as a trainer's ranks see it. All of them call every method."""

    def __init__(self, config: RLConfig, hf_files: Path, policy: Policy, prompts: PromptSet) -> None:
        """Start the process and wait until its engines are up."""
        self.config, self.policy, self.prompts = config, policy, prompts
        self.sender = WeightSender(policy.chunks, policy.model, config.rollout.transfer_seconds)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._client: RolloutClient | None = None
        self._gated: set[str] = set()
        self._in_vain = 0
        """Transfers one after the other that failed for all engines."""
        self._from_rank_0(partial(self._start, hf_files))

    def __enter__(self) -> "RolloutSource":
        gc.freeze()  # imports and model stay: to look through them at every full collection takes part of a second
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()
        self.sender.close()

    def _start(self, hf_files: Path) -> None:
        self._client = RolloutClient(self.config, self.config.run_dir, hf_files)

    def _asked(self) -> RolloutClient:
        assert self._client is not None  # on rank 0
        return self._client

    def batch(self, step: int) -> Batch:
        """The graded groups that `step` trains on, the same on every rank."""
        while True:
            try:
                return self._from_rank_0(lambda: self._asked().batch(step))
            except WeightsNeeded:  # every engine was started anew, or a transfer failed
                self.publish(step)

    def validate(self, version: int, weights: str) -> dict[str, float]:
        """What to log of the validation of this version, which must be published, the same on every rank; `weights` is
        a hash of them."""
        while True:
            try:
                return self._from_rank_0(lambda: self._asked().validate(version, weights))
            except WeightsNeeded:
                self.publish(version)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to all engines that answer, and let them generate with them; what to log.

        Now and then, and at the first transfer to an engine, its log-probabilities are held against the trainer's.

        Raises:
            GateFailed: they differ by more than the tolerance.
            RunFailed: time after time no engine has received any.
        """
        engines: list[EngineControl] = []

        def pause() -> None:
            engines.extend(self._asked().engines())
            self._asked().pause()

        self._from_rank_0(pause)
        report = self.sender.send(version, engines)
        self._tell(report)
        self._check_received(report)
        self._from_rank_0(lambda: self._asked().resume(version))
        due = version % self.config.rollout.gate_every == 0
        self._gated -= report.lost.keys()
        to_gate = [name for name in report.received if due or name not in self._gated]
        metrics = {"transfer_bytes": float(report.bytes), "engines": float(len(report.received))}
        differences = self._gate(to_gate, version) if to_gate else {}
        return metrics | ({"gate": max(differences.values())} if differences else {})

    def _tell(self, report: TransferReport) -> None:
        if dist.get_rank() == 0:
            for name, reason in report.lost.items():
                print(
                    f"engine {name} has not got weight version {report.version}: {reason}", file=sys.stderr, flush=True
                )

    def _check_received(self, report: TransferReport) -> None:
        """An engine that failed is given again when it answers: raises where none of them takes weights at all."""
        if report.received:
            self._in_vain = 0
        elif report.lost:  # and there were engines
            self._in_vain += 1
        if self._in_vain == TRANSFERS_IN_VAIN:
            lost = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in report.lost.items())
            raise RunFailed(
                f"no engine has received weights, {self._in_vain} times one after the other, the last time version "
                f"{report.version}: {lost}; look into their logs, and whether they serve the model that is trained"
            )

    def _gate(self, engines: Sequence[str], version: int) -> dict[str, float]:
        """The greatest difference of the gate's log-probabilities in each of these engines that answers."""
        count = min(self.config.rollout.gate_prompts, len(self.prompts))
        prompts = [self.prompts[index].tokens_P for index in range(count)]
        ours = document_logprobs(self.policy, prompts)
        tolerance = self.config.rollout.gate_tolerance or GATE_TOLERANCES[self.policy.config.params_dtype]

        def compare() -> dict[str, float]:
            found = {}
            for name in engines:
                try:
                    theirs = self._asked().prompt_logprobs(name, prompts)
                except EngineLost as error:  # it is compared when it is back
                    print(error, file=sys.stderr, flush=True)
                else:
                    found[name] = gate.check(name, version, ours, theirs, tolerance).greatest
            return found

        found = self._from_rank_0(compare)
        self._gated |= found.keys()
        return found

    def _from_rank_0(self, ask: Callable[[], T]) -> T:
        """What `ask` gives or raises on rank 0, where alone it is called, on every rank; however long it takes."""
        future: Future[T] | None = self._thread.submit(ask) if dist.get_rank() == 0 else None
        while True:
            answer: list[tuple[T | None, Exception | None]] = [(None, None)]
            done = torch.zeros(1, dtype=torch.int, device=device.current())
            if future is not None and wait([future], HEARTBEAT_SECONDS).done:
                done += 1
                error = future.exception()
                answer = [(None, error) if isinstance(error, Exception) else (future.result(), None)]
            dist.broadcast(done, 0)
            if done:
                dist.broadcast_object_list(answer, 0)
                result, failure = answer[0]
                if failure is not None:
                    raise failure
                return result  # type: ignore[return-value]
