"""Move a tensor's bytes from and to a place in an open file, without a copy of them."""

import os

import torch


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
