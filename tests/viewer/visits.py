"""Visits to the viewer's server, without a browser."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from html import unescape
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from qedmeg.viewer.catalogue import Catalogue
from qedmeg.viewer.server import make_app

ATTEMPT = "r=small-cache&p=algebra-1&n=0"
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>\u202e\x00{{7*7}}"
)


def served(*paths: Path) -> Callable[[Callable[[TestClient[Any, Any]], Awaitable[None]]], None]:
    """Run a test against a server over these files."""

    def run(test: Callable[[TestClient[Any, Any]], Awaitable[None]]) -> None:
        async def main() -> None:
            async with TestClient(TestServer(make_app(Catalogue(paths), "127.0.0.1"))) as client:
                await test(client)

        asyncio.run(main())

    return run


async def get(client: TestClient[Any, Any], address: str, status: int = 200, **more: Any) -> str:
    async with client.get(address, **more) as response:
        assert response.status == status, await response.text()
        return await response.text()


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())
