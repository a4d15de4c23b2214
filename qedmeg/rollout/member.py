"""A server of a fleet: what is known of it, and its process where the run has started it."""

import asyncio
import logging
import time
from collections.abc import Sequence

from qedmeg.rollout.sample import Sample
from qedmeg.rollout.server import Server, ServerProcess

SECONDS_BETWEEN_RESTARTS = 60.0

logger = logging.getLogger(__name__)


class Member:
    """A server of the fleet and what is known of it."""

    def __init__(self, server: Server, process: ServerProcess | None) -> None:
        self.server, self.process = server, process
        self.name = server.address
        self.workers = 1
        self.gpus: Sequence[str] = ()
        self.lost: str | None = "it has not answered yet"
        """Why nothing is asked of it; None while it answers."""
        self.lost_since = self.started = time.monotonic()
        self.failure_told: float | None = None
        """When it was last said that a request has failed at it."""
        self.version: int | None = None
        """Of the weights that this run has sent to it; None: not all of them arrived."""
        self.under_way = 0
        self.tasks: set[asyncio.Task[Sample]] = set()
        self.lock = asyncio.Lock()
        """Held by whoever pauses it, sends it weights or asks how it is: it answers one of them at a time."""

    def give_up(self) -> None:
        """Take what it was asked from it, for others."""
        for task in self.tasks:
            task.cancel()

    def restart(self) -> None:
        """Start it again where it is of this machine and has ended, though not again and again.

        Raises:
            OSError: it cannot be started.
        """
        if self.process is None or time.monotonic() - self.started <= SECONDS_BETWEEN_RESTARTS:
            return
        ended = self.process.ended()
        if ended:
            logger.warning("%s\nit is started again", ended)
            self.started = time.monotonic()
            self.process.start()
