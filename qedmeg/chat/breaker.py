"""The circuit breaker: a server that only fails is left alone for a while, and then tried with one request."""

import asyncio
import contextlib
import logging

logger = logging.getLogger(__name__)


class Breaker:
    """Lets requests to one server through, or has them wait.

    After `failures` failed requests in a row nothing is sent for `pause_seconds`; then one request goes as a probe and
    the others wait for what becomes of it: if it is answered all go, else the pause begins anew.
    """

    def __init__(self, server: str, failures: int, pause_seconds: float) -> None:
        self.server, self.limit, self.pause_seconds = server, failures, pause_seconds
        self.failures = 0
        """Failed requests since the last answer."""
        self._open_until = 0.0
        self._probing = False
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether requests have to wait."""
        return self.failures >= self.limit

    async def admit(self) -> bool:
        """Wait until a request may be sent; whether it is the probe. Each must be reported with `report`."""
        while self.is_open:
            pause = self._open_until - asyncio.get_running_loop().time()
            if pause <= 0 and not self._probing:
                self._probing = True
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause if pause > 0 else None):
                    await self._changed.wait()
        return False

    def report(self, *, probe: bool, answered: bool | None, reason: str = "") -> None:
        """What became of a request that was let through; `None`: it was given up before anyone could know."""
        if probe:
            self._probing = False
        if answered:
            self.failures = 0
        elif answered is not None:
            self.failures += 1
            if probe or self.failures == self.limit:
                self._open_until = asyncio.get_running_loop().time() + self.pause_seconds
                logger.warning(
                    "%s: %d requests failed in a row (%s); next try in %g s",
                    self.server,
                    self.failures,
                    reason,
                    self.pause_seconds,
                )
        self._changed.set()
        self._changed = asyncio.Event()
