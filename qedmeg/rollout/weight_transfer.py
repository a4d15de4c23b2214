"""The trainer's side of weight transfer: from the ranks' shards into running vLLM engines.

Every engine has a process group of its own with global rank 0, so that a dead one harms no other. Over it the weights
go bucket by bucket, while vLLM's weight-transfer API tells the engine what comes.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from qedmeg import device
from qedmeg.model.export import BUCKET_BYTES, Export
from qedmeg.model.families import Architecture
from qedmeg.rollout import gloo_link, nccl_link
from qedmeg.rollout.protocol import EngineLost

SECONDS_BETWEEN_LOOKS = 0.2
"""Whether an engine that keeps the trainer waiting has meanwhile said why."""

T = TypeVar("T")


class EngineControl(Protocol):
    """vLLM's weight-transfer API of one engine. Each call blocks until the engine has answered. Several engines are
    called at the same time, each from a thread of its own.

    Raises:
        EngineLost: it failed, or did not answer in time.
    """

    @property
    def name(self) -> str:
        """The address of its server, or "local"."""

    @property
    def workers(self) -> int:
        """Its tensor-parallel workers: ranks 1 to `workers` of the transfer's group."""

    @property
    def gpus(self) -> Sequence[str]:
        """UUIDs of the GPUs that they compute on; on CPUs none."""

    def init_transfer(self, info: dict[str, Any]) -> None:
        """`init_weight_transfer_engine`, with this `init_info`."""

    def start_update(self) -> None:
        """`start_weight_update`."""

    def update(self, info: dict[str, Any]) -> None:
        """`update_weights`, with this `update_info`: returns when all weights were received."""

    def finish_update(self, version: int) -> None:
        """`finish_weight_update`, with the version as text."""


@dataclass(frozen=True)
class TransferReport:
    """What became of one transfer; the same on all ranks."""

    version: int
    bytes: int
    """Of the weights; every engine gets all of them."""
    seconds: float
    fixed_seconds: float
    """Of these, what any model costs: telling the engines before the first bucket, and after the last."""
    received: tuple[str, ...]
    """The engines that hold this version now."""
    lost: dict[str, str]
    """Engines that do not, with the reason. What they hold is of no version."""


class Link(Protocol):
    """The trainer's end of the way to one engine."""

    def send(self, buffer: torch.Tensor) -> list[Any]:
        """Begin to send a flat buffer; what to wait for, with a time limit, before its memory may be used again."""

    def alive(self) -> bool:
        """Whether the engine that it was made with may still be there."""

    def close(self) -> None:
        """Give it up."""


class _Engines:
    """The engines of one transfer. All are asked at once; who fails or does not answer is left behind."""

    def __init__(self, engines: Sequence[EngineControl], patience: float) -> None:
        self.live = {engine.name: engine for engine in engines}
        self.lost: dict[str, str] = {}
        self.patience = patience
        self.left = dict.fromkeys(self.live, patience)
        """Seconds for which each may yet keep the buckets waiting."""

    def begin(self, call: Callable[[EngineControl], None]) -> dict[str, "Future[None]"]:
        """Make a call to each of them, without waiting."""
        return {name: _begin(call, engine) for name, engine in self.live.items()}

    def collect(self, answers: dict[str, "Future[None]"], what: str) -> None:
        """Wait for the answers to `what`."""
        deadline = time.monotonic() + self.patience
        for name, answer in answers.items():
            if name in self.live:
                try:
                    answer.result(max(deadline - time.monotonic(), 0.0))
                except TimeoutError:
                    self.lose(name, f"did not answer to {what} within {self.patience:g} s")
                except Exception as error:
                    self.lose(name, _reason(error))

    def lose(self, name: str, reason: str) -> None:
        del self.live[name]
        self.lost[name] = reason


@dataclass(frozen=True)
class _Sent:
    """A buffer on its way."""

    since: float
    works: dict[str, list[Any]]
    """What to wait for of each engine."""
    buffer: torch.Tensor
    """Kept until then."""


class WeightSender:
    """Sends the weights of a model that is spread over ranks to engines. All ranks make it and call `send`."""

    def __init__(self, chunks: list[Any], model: Architecture, seconds: float) -> None:
        """`chunks` are this rank's model chunks, after the optimizer was made.

        An engine that keeps the trainer waiting for half of `seconds` is lost, so that the others, which wait with the
        trainer, still end within `seconds`.
        """
        self._export = Export(chunks, model)
        self._seconds = seconds
        self._links: dict[str, Link] = {}
        self._bytes = sum(tensor.bytes for tensor in self._export.tensors)
        self._gpu = device.gpu_name()
        self._parts: Sequence[tuple[int, int]] = self._export.buckets
        """Number of tensors and bytes of each buffer that goes over the links."""
        self._slots: gloo_link.Slots | None = None
        self._memory: gloo_link.Ring | None = None
        if self._gpu is not None:
            self._parts = nccl_link.cut(tensor.bytes for tensor in self._export.tensors)
        else:
            self._slots = self._make_slots() if dist.get_rank() == 0 else None
            self._memory = gloo_link.of_all_ranks(self._slots)

    def send(self, version: int, engines: Sequence[EngineControl] = ()) -> TransferReport:
        """Send all weights to the engines, which rank 0 gives, and let them hold `version`. They must generate nothing
        meanwhile: be idle, or paused with their caches cleared.

        An engine that fails is in the report's `lost`. When it is given again it gets a group of its own anew.
        """
        start = time.monotonic()
        there = _Engines(engines if dist.get_rank() == 0 else (), self._seconds / 2)
        if self._slots is None and any(over_host_memory(engine.gpus, self._gpu) for engine in there.live.values()):
            self._slots = self._make_slots()
            self._slots.pin()
        there.collect(there.begin(self._connect), "init_transfer")
        going = [bool(there.live)]
        dist.broadcast_object_list(going)
        first = last = time.monotonic()
        if going[0]:
            updates = there.begin(lambda engine: _update(engine, self._update_info(engine), version))
            self._stream(there, updates)
            last = time.monotonic()
            there.collect(updates, "update and finish_update")
        for name in there.lost:
            self._leave(name)
        end = time.monotonic()
        fixed = (first - start) + (end - last)
        report = [TransferReport(version, self._bytes, end - start, fixed, tuple(there.live), there.lost)]
        dist.broadcast_object_list(report)
        return report[0]

    def close(self) -> None:
        """Leave all groups."""
        for name in list(self._links):
            self._leave(name)
        if self._slots is not None:
            self._slots.close()

    def _connect(self, engine: EngineControl) -> None:
        """Make a group with an engine's workers, unless there is one."""
        if engine.name in self._links and self._links[engine.name].alive():
            return
        self._leave(engine.name)  # it was started anew since
        host, size = gloo_link.address_towards(engine.name), engine.workers + 1
        listener = socket.create_server((host, 0))
        info = {"master_address": host, "master_port": listener.getsockname()[1], "world_size": size}
        link: Future[Link]
        if not over_host_memory(engine.gpus, self._gpu):
            link = _begin(nccl_link.NcclLink, listener, size, self._seconds, device.current().index)
            info |= {"rank_offset": 1, "packed": True, "packed_buffer_size_bytes": BUCKET_BYTES}
        else:
            assert self._slots is not None
            link = _begin(gloo_link.TrainerLink, listener, size, self._seconds)
            info |= {"seconds": self._seconds, "memory": asdict(self._slots.describe())}
        engine.init_transfer(info)
        self._links[engine.name] = link.result(self._seconds)

    def _leave(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            _begin(link.close)  # which may wait for what hangs

    def _stream(self, there: _Engines, updates: dict[str, "Future[None]"]) -> None:
        """Collect the buckets, and send each to all engines while they load the one before."""
        under_way: deque[_Sent] = deque()
        for buffer in self._buffers():
            if buffer is None:
                continue
            sent = _Sent(time.monotonic(), {}, buffer)
            staged = self._staged(buffer, [self._links[name] for name in there.live])
            for name in list(there.live):
                link = self._links[name]
                try:
                    sent.works[name] = link.send(staged if isinstance(link, gloo_link.TrainerLink) else buffer)
                except RuntimeError as error:
                    self._lose(there, name, updates[name], _first_line(error))
            under_way.append(sent)
            if len(under_way) == gloo_link.SLOTS:
                self._await(under_way.popleft(), there, updates)
        for sent in under_way:
            self._await(sent, there, updates)

    def _buffers(self) -> Iterator[torch.Tensor | None]:
        """What goes over the links; None on other ranks than 0."""
        memory = self._memory or self._slots
        if memory is not None:
            memory.restart()
        if self._gpu is not None:
            yield from nccl_link.packed(self._export.stream(), self._parts)
            return
        allocate = memory.allocate if memory else None
        for bucket in self._export.stream(allocate, shared=self._memory is not None):
            yield None if bucket is None else bucket.buffer

    def _staged(self, buffer: torch.Tensor, links: Sequence[Link]) -> torch.Tensor:
        """A GPU's buffer copied to the slots, where a link wants it there."""
        if self._gpu is None or not any(isinstance(link, gloo_link.TrainerLink) for link in links):
            return buffer
        assert self._slots is not None
        return self._slots.allocate(len(buffer)).copy_(buffer)

    def _await(self, sent: _Sent, there: _Engines, updates: dict[str, "Future[None]"]) -> None:
        """Wait until every engine has a buffer, or has failed."""
        for name, works in sent.works.items():
            for work in works:
                while name in there.live:
                    now = time.monotonic()
                    left = min(there.left[name], sent.since + there.patience - now)  # others may have been waited for
                    try:
                        if _wait(work, min(max(left, 0.001), SECONDS_BETWEEN_LOOKS)):
                            break
                    except RuntimeError as error:
                        self._lose(there, name, updates[name], _first_line(error))
                    else:
                        if updates[name].done() and (failure := updates[name].exception()):
                            there.lose(name, _reason(failure))
                        elif left <= 0:
                            there.lose(name, f"kept the transfer waiting for {there.patience:g} s")
                    finally:
                        there.left[name] -= time.monotonic() - now

    def _lose(self, there: _Engines, name: str, update: "Future[None]", reason: str) -> None:
        """The engine does not take what is sent. What it says itself is the better reason, if it says something."""
        try:
            update.result(1.0)
        except TimeoutError:
            pass
        except Exception as error:
            reason = _reason(error)
        there.lose(name, reason)

    def _make_slots(self) -> gloo_link.Slots:
        return gloo_link.Slots([size for _, size in self._parts])

    def _update_info(self, engine: EngineControl) -> dict[str, Any]:
        """vLLM's `update_info`."""
        tensors = self._export.tensors
        info = {
            "names": [tensor.name for tensor in tensors],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
            "shapes": [list(tensor.shape) for tensor in tensors],
        }
        if not over_host_memory(engine.gpus, self._gpu):
            return info
        return info | {"buckets": [count for count, _ in self._parts]}


def over_host_memory(engine: Sequence[str], trainer: str | None) -> bool:
    """Whether an engine on these GPUs is sent its weights over the host's memory by a trainer whose rank 0 is on that
    one, rather than by NCCL: where there is none, or where they share it, which NCCL refuses."""
    return trainer is None or trainer in engine


def _update(engine: EngineControl, info: dict[str, Any], version: int) -> None:
    # one after the other at once: vLLM refuses the next trainer when this one dies between two of them
    engine.start_update()
    engine.update(info)
    engine.finish_update(version)


def _wait(work: Any, seconds: float) -> bool:
    """Whether it was done within some seconds.

    Raises:
        RuntimeError: it has failed.
    """
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # which raises why it failed, if it did
    return True


def _begin(call: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Call it in a thread of its own, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, EngineLost) else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
