"""Flat buffers from the trainer (rank 0) to the workers of one engine (ranks 1, 2, ...) in the host's memory.

Their bytes go over gloo. Where the two are on one machine they lie in shared memory, and gloo only says when a buffer
is there and when all workers have read it. Both sides import this module; it needs neither vLLM nor Megatron.
"""

import contextlib
import logging
import mmap
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed

logger = logging.getLogger(__name__)

_c10d: Any = torch.distributed  # whose groups of their own the type checker does not know
SLOTS = 2
"""One is filled while the other is read."""
_MEMORY_NAME = "qedmeg-weights"
_DOOR = "door"
"""Key of the port where workers knock: they keep the connection, and it ends with them."""


def address_towards(engine: str) -> str:
    """This machine's address as an engine sees it, which is named by its own, such as http://node7:8000; loopback where
    the name is no address."""
    host = urlsplit(engine).hostname
    if host is None:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, urlsplit(engine).port or 80))  # sends nothing: it looks up the route
        return str(probe.getsockname()[0])


class Group:
    """A gloo group of its own, beside the default one."""

    def __init__(self, store: Any, address: str, rank: int, size: int, seconds: float) -> None:
        """Join it with this machine's `address`, and wait until all have."""
        options = _c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=seconds)
        options._devices = [_c10d.ProcessGroupGloo.create_device(hostname=address)]
        self._group = _c10d.ProcessGroupGloo(_c10d.PrefixStore("weights", store), rank, size, options)
        self._store = store

    def broadcast(self, tensor: torch.Tensor) -> Any:
        """Begin to send rank 0's tensor to the others; what to wait for."""
        options = _c10d.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        return self._group.broadcast([tensor], options)

    def meet(self) -> Any:
        """Begin to wait for all others to call it too; what to wait for."""
        return self._group.barrier()

    def all_agree(self, yes: bool) -> bool:
        """Whether all say yes."""
        votes = torch.tensor([int(yes)], dtype=torch.int32)
        options = _c10d.AllreduceOptions()
        options.reduceOp = _c10d.ReduceOp.MIN
        self._group.allreduce([votes], options).wait()
        return bool(votes.item())

    def close(self) -> None:
        """Leave it; the others see it, since the connections end with the group."""
        self._group.abort()
        self._group = self._store = None


def _store(host: str, port: int, size: int, seconds: float, **listening: int) -> Any:
    timeout = timedelta(seconds=seconds)
    return _c10d.TCPStore(
        host,
        port,
        size,
        is_master=bool(listening),
        timeout=timeout,
        wait_for_workers=False,
        use_libuv=False,  # which takes no descriptor
        **listening,
    )


@dataclass(frozen=True)
class SharedMemory:
    """Where an engine on the same machine finds the trainer's slots: files of a process, without a name on disk."""

    pid: int
    files: Sequence[int]
    sizes: Sequence[int]
    token: str
    """What the first slot begins with, in hexadecimal, when the group is made. Who reads it is on the same machine."""


class Ring:
    """Buffers that are filled in turns."""

    def __init__(self, memory: list[torch.Tensor]) -> None:
        self._memory = memory
        self._next = 0

    def restart(self) -> None:
        """The next buffer is the first slot's."""
        self._next = 0

    def allocate(self, size: int) -> torch.Tensor:
        """The next slot, as a flat uint8 buffer [size]. It must have been read by all that it was sent to."""
        slot, self._next = self._next, (self._next + 1) % len(self._memory)
        return self._memory[slot][:size]


class Slots(Ring):
    """The trainer's buffers, in memory that its other ranks and engines on the same machine can map. It goes with the
    process."""

    def __init__(self, buckets: Sequence[int]) -> None:
        """Room for buckets of these bytes, which take the slots in turns."""
        sizes = [max(buckets[slot::SLOTS], default=0) for slot in range(SLOTS)]
        self._token = secrets.token_bytes(16)
        self._pinned: Sequence[int] = ()
        self._sizes = tuple(max(size, len(self._token)) for size in sizes)
        self._files = tuple(os.memfd_create(_MEMORY_NAME) for _ in sizes)
        for file, size in zip(self._files, self._sizes, strict=True):
            os.ftruncate(file, size)
        super().__init__([_map(file, size) for file, size in zip(self._files, self._sizes, strict=True)])

    def pin(self) -> None:
        """Let the GPU copy into them at the speed of its bus."""
        self._pinned = pin(self._memory)

    def describe(self) -> SharedMemory:
        """For whoever is to map them, before a bucket is filled."""
        self._memory[0][: len(self._token)] = torch.frombuffer(bytearray(self._token), dtype=torch.uint8)
        return SharedMemory(os.getpid(), self._files, self._sizes, self._token.hex())

    def close(self) -> None:
        """Give the memory back, once nothing refers to it."""
        unpin(self._pinned)
        for file in self._files:
            os.close(file)
        self._memory.clear()


def map_slots(where: SharedMemory) -> list[torch.Tensor] | None:
    """The trainer's slots, or None when it is on another machine."""
    paths = [f"/proc/{where.pid}/fd/{file}" for file in where.files]
    found = []
    try:
        for path, size in zip(paths, where.sizes, strict=True):
            if not os.readlink(path).startswith(f"/memfd:{_MEMORY_NAME}"):
                return None  # another machine's process of that number
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                found.append(_map(file, size))
            finally:
                os.close(file)
    except (OSError, ValueError):
        return None
    token = bytes.fromhex(where.token)
    return found if bytes(found[0][: len(token)].tolist()) == token else None


def pin(memory: Sequence[torch.Tensor]) -> list[int]:
    """Register buffers with CUDA, which else copies through a small buffer of its own at a part of the speed; what
    `unpin` takes. Where the system refuses, they stay as they are."""
    pinned = []
    for tensor in memory:
        status = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.numel(), 0))
        if status:
            logger.warning("CUDA registers no memory (error %d): weights are copied at less than full speed", status)
            with contextlib.suppress(RuntimeError):  # which CUDA tells again at the next kernel, whosever it is
                torch.zeros(1, device="cuda").add_(1)
            break
        pinned.append(tensor.data_ptr())
    return pinned


def unpin(pinned: Sequence[int]) -> None:
    """To be done before the memory goes: CUDA would refuse what is mapped there later."""
    for address in pinned:
        torch.cuda.cudart().cudaHostUnregister(address)


def _map(file: int, size: int) -> torch.Tensor:
    memory = mmap.mmap(file, size)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def of_all_ranks(slots: Slots | None) -> Ring | None:
    """On each rank of the trainer its own map of rank 0's `slots`; None on all where one is on another machine. All
    ranks call it, and none fills a slot meanwhile."""
    told = [slots.describe() if slots else None]
    torch.distributed.broadcast_object_list(told)
    assert told[0] is not None
    memory = slots._memory if slots else map_slots(told[0])
    all_have = torch.tensor([int(memory is not None)])
    torch.distributed.all_reduce(all_have, torch.distributed.ReduceOp.MIN)
    return (slots or Ring(memory)) if memory is not None and all_have.item() else None


class TrainerLink:
    """The trainer's end."""

    def __init__(self, listener: socket.socket, size: int, seconds: float) -> None:
        """Wait on a listening socket until the workers have joined: `size` ranks with this one.

        Raises:
            RuntimeError, TimeoutError: they do not within `seconds`.
        """
        host, port = listener.getsockname()[:2]
        store = _store(host, port, size, seconds, master_listen_fd=listener.detach())
        with socket.create_server((host, 0)) as door:
            door.settimeout(seconds)
            store.set(_DOOR, f"{door.getsockname()[1]}")
            self._workers = [door.accept()[0] for _ in range(size - 1)]
        self._group = Group(store, host, 0, size, seconds)
        self.shared = self._group.all_agree(True)
        """Whether all workers read the slots' memory themselves."""

    def send(self, buffer: torch.Tensor) -> list[Any]:
        """Begin to send a buffer, of the slots; what to wait for before it may be filled again."""
        if not self.shared:
            return [self._group.broadcast(buffer)]
        return [self._group.broadcast(torch.zeros(1, dtype=torch.uint8)), self._group.meet()]

    def alive(self) -> bool:
        """Whether all workers that have joined are still there. Of a group itself, only using it would tell."""
        return all(map(_is_open, self._workers))

    def close(self) -> None:
        """Leave the group; the workers see it."""
        for worker in self._workers:
            worker.close()
        self._group.close()


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class EngineLink:
    """A worker's end. Buffers come in the same order as they were sent."""

    def __init__(self, host: str, port: int, rank: int, size: int, seconds: float, memory: SharedMemory) -> None:
        """Join the trainer, which listens there, as a rank of 1 or more; find out whether it is on this machine.

        Raises:
            RuntimeError: it, or another worker, does not answer within `seconds`.
        """
        store = _store(host, port, size, seconds)
        self._door = socket.create_connection((host, int(store.get(_DOOR))), timeout=seconds)
        self._group = Group(store, str(self._door.getsockname()[0]), rank, size, seconds)
        slots = map_slots(memory)
        self._slots = slots if self._group.all_agree(slots is not None) else None
        self._pinned: Sequence[int] = ()
        self._received = 0

    def pin(self) -> None:
        """Let a GPU copy from the slots at the speed of its bus."""
        self._pinned = pin(self._slots or ())

    def restart(self) -> None:
        """The next buffer is the first slot's."""
        self._received = 0

    def receive(self, size: int) -> torch.Tensor:
        """The next buffer [size] of uint8. It must not be read after `release` was called.

        Raises:
            RuntimeError: the trainer has gone, or does not answer in time.
        """
        if self._slots is None:
            buffer = torch.empty(size, dtype=torch.uint8)
            self._group.broadcast(buffer).wait()
            return buffer
        self._group.broadcast(torch.zeros(1, dtype=torch.uint8)).wait()
        slot, self._received = self._received % SLOTS, self._received + 1
        return self._slots[slot][:size]

    def release(self) -> None:
        """The last buffer has been read."""
        if self._slots is not None:
            self._group.meet().wait()

    def close(self) -> None:
        """Leave the group; the trainer sees it."""
        unpin(self._pinned)
        self._pinned = ()
        self._door.close()
        self._group.close()
