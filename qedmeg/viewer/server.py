"""The HTTP side of the viewer. Pages are made in one thread, so that files and memory are used by one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from qedmeg.errors import UserError
from qedmeg.viewer import by_hand, pages, texts
from qedmeg.viewer.catalogue import Catalogue
from qedmeg.viewer.filters import Filters
from qedmeg.viewer.guard import FORM_REFERRER_POLICY, Guard, add_headers
from qedmeg.viewer.site import NotFoundError, Site

STATIC = Path(__file__).parent / "static"
_LARGEST_FORM = 2**18

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(catalogue: Catalogue, host: str) -> web.Application:
    """The application over a catalogue, which it closes at its end. `host` is what it will listen at."""
    guard = Guard(host)
    site = Site(catalogue, guard.token)
    thread = ThreadPoolExecutor(1, thread_name_prefix="viewer")

    async def made(make: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, make, site, *arguments)

    def page(make: Callable[[Site, MultiMapping[str]], str]) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            return _html(await made(make, request.query))

        return handler

    async def call_texts(request: web.Request) -> web.Response:
        return web.json_response(await made(texts.call_texts, request.query))

    async def grade_page(request: web.Request) -> web.Response:
        response = _html(await made(by_hand.grade_page, request.query))
        response.headers["Referrer-Policy"] = FORM_REFERRER_POLICY
        return response

    async def save_grade(request: web.Request) -> web.Response:
        form = await request.post()
        if not guard.token_is_right(form.get("token")):
            return _refused(site, 403, "the form is of another start of this server; load the page again and repeat")
        written = {name: value for name, value in form.items() if isinstance(value, str)}
        address = await made(by_hand.save, request.query, written)
        return web.Response(status=303, headers={"Location": address})

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = guard.why_not(request)
        if refusal:
            return _refused(site, 403, refusal)
        try:
            return await handler(request)
        except NotFoundError as error:
            return _refused(site, 404, str(error))
        except UserError as error:
            return _refused(site, 400, str(error))
        except web.HTTPClientError as error:
            return _refused(site, error.status, error.reason)

    async def close(app: web.Application) -> None:
        thread.shutdown()
        catalogue.close()

    app = web.Application(middlewares=[guarded], client_max_size=_LARGEST_FORM)
    app.on_response_prepare.append(add_headers)
    app.on_cleanup.append(close)
    app.router.add_get("/", page(pages.overview))
    app.router.add_get("/problem", page(pages.problem_page))
    app.router.add_get("/attempt", page(pages.attempt_page))
    app.router.add_get("/compare", page(pages.compare_page))
    app.router.add_get("/text", page(texts.text_page))
    app.router.add_get("/call", page(texts.call_page))
    app.router.add_get("/call.json", call_texts)
    app.router.add_get("/grade", grade_page)
    app.router.add_post("/grade", save_grade)
    app.router.add_static("/static", STATIC)
    return app


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(
        body=text.encode("utf-8", errors="replace"), status=status, content_type="text/html", charset="utf-8"
    )


def _refused(site: Site, status: int, why: str) -> web.Response:
    return _html(site.page("error.html.jinja", Filters(), status=status, why=why), status)
