"""A hub on this machine: enough of its API to take a release, large files included, and to refuse one."""

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_standin_0123456789"


@dataclass
class Hub:
    """What the hub was told. `refuse` maps the beginning of a path to the status that it is answered with."""

    refuse: dict[str, int] = field(default_factory=dict)
    silent: bool = False
    """Take requests and never answer."""
    repos: dict[str, bool] = field(default_factory=dict)
    """By name, whether it is private."""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    address: str = ""

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            told = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def _answer(self, content: object, status: int = 200) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        hub, path = self.told, urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(length)
        hub.requests.append(f"{self.command} {path}")
        while hub.silent:
            time.sleep(0.1)
        status = next((status for start, status in hub.refuse.items() if path.startswith(start)), None)
        if status is None and not path.startswith("/store/") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self._answer({"error": "no"}, status)
        elif path == "/api/whoami-v2":
            self._answer({"type": "user", "name": "org", "orgs": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.startswith("/store/"):
            hub.stored[path.removeprefix("/store/")] = body
            self._answer(None)
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            modes = {
                one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular"
                for one in json.loads(body)["files"]
            }
            self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif "/commit/" in path:
            self._commit(body)
        elif path.startswith("/api/models/"):
            self._tell(path.removeprefix("/api/models/"))
        else:
            self._answer({"error": "not known here"}, 404)

    do_GET = do_POST = do_PUT = _handle

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.told.repos
        self.told.repos.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": f"{self.told.address}/{name}"}, 409 if there else 200)

    def _batch(self, asked: dict) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.told.address}/store/{one['oid']}", "header": {}}},
            }
            for one in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.told.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.told.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.told.files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del self.told.files[value["path"]]
        url = f"{self.told.address}/org/model/commit/abc"
        self._answer({"commitUrl": url, "commitOid": "a" * 40, "pullRequestUrl": None})

    def _tell(self, path: str) -> None:
        name = "/".join(path.split("/")[:2])
        if name not in self.told.repos:
            self._answer({"error": "Repository not found"}, 404)
        elif "/tree/" in path:
            self._answer([{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in self.told.files])
        else:
            siblings = [{"rfilename": path} for path in self.told.files]
            self._answer(
                {"id": name, "private": self.told.repos[name], "sha": "a" * 40, "siblings": siblings, "tags": []}
            )
