"""Move a tensor's bytes from and to a place in an open file, without a copy of them."""

import math
import os
from collections.abc import Iterator

import torch

BLOCK_BYTES = 2 << 20  # of a tensor at a time; from 4 MB on, malloc would ask for new pages each time


def blocks(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """First and last + 1 row of each block of a tensor, at most `BLOCK_BYTES` or one row large."""
    rows = max(1, BLOCK_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


def read_into(tensor: torch.Tensor, file: int, position: int) -> bool:
    """Fill a contiguous tensor from `position` on; False where the file ends before it is full."""
    view, done = _bytes(tensor), 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], position + done)
        if count == 0:
            return False
        done += count
    return True


def write_from(tensor: torch.Tensor, file: int, position: int) -> None:
    """Write a tensor's elements in order from `position` on."""
    view, done = _bytes(tensor.contiguous()), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], position + done)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
