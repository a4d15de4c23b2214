"""Flat buffers from the trainer to the workers of one engine on GPUs, as vLLM's own nccl engine takes them."""

import socket
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch

from qedmeg.model.export import BUCKET_BYTES, Bucket


class NcclLink:
    """The trainer's end of a communicator of its own, on a stream of its own: one that hangs stops no other."""

    def __init__(self, listener: socket.socket, size: int, seconds: float, device: int) -> None:
        """Wait on a listening socket until the engine's workers have joined: `size` ranks with this one."""
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
        from vllm.utils.nccl import unpinned_nccl_env

        # the current device belongs to the thread, and this may be a new one
        torch.cuda.set_device(device)
        host, port = listener.getsockname()[:2]
        store = StatelessProcessGroup.create(
            host, port, rank=0, world_size=size, store_timeout=int(seconds), listen_socket=listener
        )
        with unpinned_nccl_env():
            self._group = PyNcclCommunicator(store, device=device)
        self._stream = torch.cuda.Stream(device)

    def send(self, buffer: torch.Tensor) -> list[Any]:
        """Begin to send a buffer; what to wait for before its memory may be used again."""
        self._stream.wait_stream(torch.cuda.current_stream())
        self._group.broadcast(buffer, src=0, stream=self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return [_Sent(event)]

    def alive(self) -> bool:
        """True: NCCL does not tell. An engine that was started anew fails its next update at once."""
        return True

    def close(self) -> None:
        """Leave the group, also when it hangs."""
        self._group.destroy()


class _Sent:
    def __init__(self, event: Any) -> None:
        self._event = event

    def is_completed(self) -> bool:
        done: bool = self._event.query()
        return done

    def wait(self, timeout: timedelta = timedelta(0)) -> None:
        """Block until it has happened, since a stream that hangs could not be given up.

        Raises:
            RuntimeError: it has not within `timeout`.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        while not self._event.query():
            if time.monotonic() > deadline:
                raise RuntimeError(f"NCCL broadcast not done in {timeout.total_seconds():.0f} s")
            time.sleep(0.0005)


def cut(sizes: Iterable[int], limit: int = BUCKET_BYTES) -> list[tuple[int, int]]:
    """Tensors of these bytes, cut as vLLM's `packed_nccl_broadcast_consumer` cuts them, after the tensor that exceeds
    `limit`: the number of tensors and the bytes of each part."""
    parts, count, size = [], 0, 0
    for each in sizes:
        count, size = count + 1, size + each
        if size > limit:
            parts.append((count, size))
            count, size = 0, 0
    return [*parts, (count, size)] if count else parts


def packed(buckets: Iterable[Bucket | None], parts: Iterable[tuple[int, int]]) -> Iterator[torch.Tensor | None]:
    """The same bytes in the parts that `cut` gives. None for None, so that ranks stay in step."""
    counts = iter(parts)
    count, tensors = 0, list[torch.Tensor]()
    for bucket in buckets:
        if bucket is None:
            yield None
            continue
        for _, tensor in bucket.tensors:
            count = count or next(counts)[0]
            tensors.append(tensor.reshape(-1).view(torch.uint8))
            if len(tensors) == count:
                yield torch.cat(tensors)
                count, tensors = 0, []
