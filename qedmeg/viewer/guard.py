"""What keeps other web pages, and what models wrote, from doing anything here.

Nothing on a page runs but the viewer's own scripts, and these make no HTML of text. A request must name this server by
an address, `localhost` or the name it was started with: a page of another site whose name was turned to this machine
(DNS rebinding) names it by its own. What writes must come from a page of this server and hold its token.
"""

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FORM_REFERRER_POLICY = "same-origin"
"""For a page with a form that writes: under `no-referrer` browsers send `Origin: null` with it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Checks requests before anything else sees them."""

    def __init__(self, host: str) -> None:
        """`host`: the name or address that the server was told to listen at."""
        self.token = secrets.token_urlsafe(32)
        """In every form that writes."""
        self._names = {"localhost", host.lower()}

    def why_not(self, request: web.Request) -> str:
        """Why a request is refused; empty: it is not."""
        if not self._is_here(request.headers.get("Host", "")):
            return "this server is asked for by a name that is not its own; open it by its address, or by localhost"
        if request.method in ("GET", "HEAD"):
            return ""
        if request.headers.get("Origin") != f"http://{request.headers['Host']}":
            return "the form was not sent from a page of this server; load the page again and repeat"
        return ""

    def token_is_right(self, token: Any) -> bool:
        return isinstance(token, str) and hmac.compare_digest(token.encode(), self.token.encode())

    def _is_here(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: every answer has them, errors too."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
