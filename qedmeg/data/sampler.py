"""Which document comes next: a seeded permutation for each epoch, and a position that counts documents.

The position knows nothing of ranks, microbatches or steps, so a run goes on at another topology, or with another number
of documents a step, exactly where it was.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qedmeg.errors import UserError


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that depends on (seed, epoch) alone.

    It sorts the raw output of the counter-based generator Philox (Salmon et al., Parallel random numbers: as easy as
    1, 2, 3, SC 2011), which numpy keeps the same from version to version; it does not promise that for `permutation`,
    nor torch for `randperm`.
    """
    order = np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(size), kind="stable")
    order.flags.writeable = False
    return order


def documents_at(seed: int, size: int, consumed: int, count: int) -> list[int]:
    """The next `count` documents of `size` after `consumed` of them, through as many epochs as that takes.

    An epoch's last, partial step is filled from the next epoch: every document comes exactly once an epoch.
    """
    documents: list[int] = []
    while len(documents) < count:
        epoch, position = divmod(consumed + len(documents), size)
        documents += permutation(seed, epoch, size)[position : position + count - len(documents)].tolist()
    return documents


@dataclass(frozen=True)
class DataPosition:
    """How many documents of which data set were trained on, in which order."""

    seed: int
    size: int
    """Documents of the data set."""
    fingerprint: str
    """`Summary.fingerprint` of the data set."""
    consumed: int = 0
    """Documents since the beginning of the run, over all epochs."""

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.consumed // self.size

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.consumed % self.size,
            "size": self.size,
            "fingerprint": self.fingerprint,
        }

    def resumed(self, state: dict[str, Any]) -> "DataPosition":
        """This position moved to where `state` was saved. Raises UserError where that was another data set or order:
        going on would repeat some documents and leave others out, in silence."""
        saved, now = (state["size"], state["fingerprint"]), (self.size, self.fingerprint)
        if saved != now:
            raise UserError(
                f"data.train: these are not the documents that the checkpoint was trained on ({now[0]} documents, "
                f"fingerprint {now[1][:12]}; then {saved[0]}, {saved[1][:12]}): rows, tokenizer, chat template, "
                "columns, max_length or too_long have changed; change them back, or start a new run from the "
                "checkpoint's weights"
            )
        if state["seed"] != self.seed:
            raise UserError(
                f"data.seed: {self.seed}: the checkpoint was trained with {state['seed']}; set it back, or start a new "
                "run from the checkpoint's weights"
            )
        return DataPosition(self.seed, self.size, self.fingerprint, state["epoch"] * self.size + state["position"])
