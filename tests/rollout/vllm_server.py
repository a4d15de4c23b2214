"""A stand-in for a vLLM server, for what a real one does not do on request: die, hang, and come back.

It speaks the routes that a fleet uses, and nothing else. What it "generates" is a function of prompt, seed and length,
so that an answer can be told to be the right one; it takes `seconds` for it. Weights are a version and no more.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from qedmeg.rollout.engine import Request
from qedmeg.rollout.sample import Sampling

CONTEXT = 64
DIES_WHEN_ASKED = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        print("ValueError: no room for keys", flush=True)
        os._exit(3)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A program that listens at a port and dies when it is asked something, with an error in its output."""


def right_tokens(request: Request, sampling: Sampling) -> list[int]:
    """What every stand-in answers."""
    return _tokens(request.prompt_P.tolist(), request.seed, sampling.max_tokens)


def _tokens(prompt: list[int], seed: int, count: int) -> list[int]:
    return np.random.default_rng([*prompt, seed]).integers(0, 300, count).tolist()


@dataclass
class VllmServer:
    """`async with VllmServer() as server:` serves at `server.address` in the same event loop."""

    fate: Callable[[int], str] = lambda seed: "answer"
    """What becomes of the request with a seed: 'answer', '500', 'reset', 'cut', 'nonsense', 'hang', '400'."""
    seconds: float = 0.0
    context: int = CONTEXT
    dev_mode: bool = True
    version: str = "default"
    hangs: bool = False
    """While true, no route answers."""
    null: bool = False
    """While true, what is asked for the version of the weights is answered with null."""
    engine_hangs: bool = False
    """While true, /health answers and what needs the engine does not."""
    asked: Counter[int] = field(default_factory=Counter)
    """How often each seed was asked for."""
    answered: list[int] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    """Seeds of requests whose client went away."""
    calls: list[str] = field(default_factory=list)
    """Routes that were called, but for generation and probes."""
    most_at_once: int = 0
    address: str = ""

    async def __aenter__(self) -> "VllmServer":
        self._port, self._at_once = 0, 0
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start it, or start it anew at the same address: without weights."""
        self.version, self.hangs, self.engine_hangs = "default", False, False
        self._going = asyncio.Event()
        self._going.set()
        application = web.Application()
        add = application.router.add_route
        add("GET", "/health", self._health)
        add("GET", "/v1/models", self._models)
        add("POST", "/inference/v1/generate", self._generate)
        if self.dev_mode:
            add("GET", "/get_world_size", self._world_size)
            add("GET", "/weight_info", self._weight_info)
            add("POST", "/collective_rpc", self._call_workers)
            for route in ("/pause", "/resume", "/init_weight_transfer_engine", "/start_weight_update"):
                add("POST", route, self._control)
            for route in ("/update_weights", "/finish_weight_update"):
                add("POST", route, self._control)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.address = f"http://127.0.0.1:{self._port}"

    async def kill(self) -> None:
        """End it in the midst of what it does."""
        server = self._runner.server
        for connection in list(server.connections) if server else []:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    async def _answer(self, body: Any = None, *, engine: bool = True) -> web.Response:
        while self.hangs or (engine and self.engine_hangs):
            await asyncio.sleep(0.01)
        return web.json_response(body)

    async def _health(self, _: web.Request) -> web.Response:
        return await self._answer(engine=False)

    async def _models(self, _: web.Request) -> web.Response:
        return await self._answer({"data": [{"max_model_len": self.context}]}, engine=False)

    async def _world_size(self, _: web.Request) -> web.Response:
        return await self._answer({"world_size": 2}, engine=False)

    async def _weight_info(self, _: web.Request) -> web.Response:
        return await self._answer(None if self.null else {"weight_version": self.version})

    async def _call_workers(self, request: web.Request) -> web.Response:
        assert await request.json() == {"method": "gpus"}
        return await self._answer({"results": [["GPU-1"], ["GPU-2"]]})

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.calls.append(request.path)
        answer = await self._answer({"status": "done"})
        if request.path == "/pause":
            assert request.query["mode"] == "keep"
            self._going.clear()
        elif request.path == "/resume":
            self._going.set()
        elif request.path == "/update_weights" and "broken" in json.loads(body)["update_info"]:
            return web.json_response({"error": "the trainer went away"}, status=500)
        elif request.path == "/finish_weight_update":
            self.version = json.loads(body)["weight_version"]
        return answer

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        settings = body["sampling_params"]
        seed = settings["seed"]
        self.asked[seed] += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self.seconds)
            await self._going.wait()
            return await self._fated(request, body["token_ids"], settings)
        except asyncio.CancelledError:
            self.given_up.append(seed)
            raise
        finally:
            self._at_once -= 1

    async def _fated(self, request: web.Request, prompt: list[int], settings: dict[str, Any]) -> web.StreamResponse:
        seed, fate = settings["seed"], self.fate(settings["seed"])
        if fate in ("500", "400"):
            return web.json_response({"error": {"message": "no"}}, status=int(fate))
        if fate == "hang":
            await asyncio.sleep(3600)
        if fate == "nonsense":
            return web.json_response({"choices": [{"token_ids": [1, 2], "finish_reason": "stop"}]})
        assert request.transport is not None
        if fate == "reset":
            request.transport.abort()
            return web.Response()
        tokens = _tokens(prompt, seed, settings["max_tokens"])
        choice = {
            "token_ids": tokens,
            "logprobs": {"content": [{"token_id": token, "logprob": -1.5} for token in tokens]},
            "finish_reason": "length",
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }
        answer = json.dumps({"choices": [choice]}).encode()
        if fate == "cut":
            response = web.StreamResponse(headers={"Content-Length": f"{len(answer)}"})
            await response.prepare(request)
            await response.write(answer[: len(answer) // 2])
            request.transport.abort()
            return response
        response = await self._answer({"choices": [choice]})
        self.answered.append(seed)
        return response
