"""A Hugging Face hub on loopback: what ``huggingface_hub`` asks to learn of a model and to fetch its files.

The routes and headers are those of huggingface.co: a model's description, then for each file a HEAD that names its
commit and its ETag; large files (``lfs``) are on another host, to which the first one redirects.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import unquote, urlsplit

__all__ = ["Hub", "HubModel", "running_hub"]

#: Larger files are not in git itself.
_LARGE: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model on the hub: its files by their paths, at one commit of one branch."""

    files: Mapping[str, bytes]
    branch: str = "main"
    token: str | None = None
    """Who has another one is told that there is no such model, as of a private one."""
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1("".join(sorted(self.files)).encode()).hexdigest()


@dataclass(slots=True)
class Hub:
    """What the hub has, and what it is to do wrong; a test may change both while it runs.

    ``asked``: method and path of each request. ``breaks_after``: so many bytes of a large file are sent before the
    connection is closed. ``holds``: with it, a large file's second half comes when ``goes_on`` is set; ``held`` tells
    that the first half is out. ``spoils``: the last byte of large files is another one. ``status``: of every answer.
    """

    url: str = ""
    models: dict[str, HubModel] = field(default_factory=dict[str, HubModel])
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    breaks_after: int | None = None
    holds: bool = False
    spoils: bool = False
    status: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)

    @property
    def elsewhere(self) -> str:
        """The same server by another name. Clients follow where a hub points differently if it is to itself."""
        return self.url.replace("127.0.0.1", "localhost")

    def fetched(self) -> list[str]:
        """The files whose content was asked for, large ones by their digest."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "GET" and "/api/" not in path]


@contextmanager
def running_hub() -> Generator[Hub]:
    """A hub without models, on a free port."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        # A client that was killed leaves a thread that waits for it.
        server.daemon_threads = True
        server.block_on_close = False
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.goes_on.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base's
        pass

    def do_HEAD(self: Self) -> None:
        self._answer()

    def do_GET(self: Self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.status is not None:
            return self._refuse(self.hub.status)
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self._large(parts[1])
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[5] if len(parts) > 4 else None)
        return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _found(self, name: str, revision: str | None) -> HubModel | None:
        """The model, or none after it was refused."""
        model = self.hub.models.get(name)
        bearer = self.headers.get("authorization")
        if model is None or (model.token is not None and bearer != f"Bearer {model.token}"):
            self._refuse(401, "RepoNotFound")
        elif model.gated:
            self._refuse(403, "GatedRepo")
        elif revision not in (None, model.branch, model.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return model
        return None

    def _describe(self, name: str, revision: str | None) -> None:
        if (model := self._found(name, revision)) is None:
            return
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                **_lfs(content),
            }
            for path, content in model.files.items()
        ]
        told = {"_id": "0", "id": name, "modelId": name, "sha": model.commit, "private": False, "siblings": siblings}
        self._send(200, json.dumps(told).encode(), {"content-type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (model := self._found(name, revision)) is None:
            return None
        content = model.files.get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"x-repo-commit": model.commit}
        if not _is_large(content):
            return self._send(200, content, {**headers, "etag": f'"{hashlib.sha1(content).hexdigest()}"'})
        linked = {"x-linked-etag": f'"{_sha256(content)}"', "x-linked-size": str(len(content))}
        return self._send(302, b"", {**headers, **linked, "location": f"{self.hub.elsewhere}/lfs/{_sha256(content)}"})

    def _large(self, digest: str) -> None:
        files = [content for model in self.hub.models.values() for content in model.files.values()]
        content = next(content for content in files if _is_large(content) and _sha256(content) == digest)
        if self.hub.spoils:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("content-range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("content-length", str(len(content) - begin))
        self.end_headers()
        try:
            self._pour(content[begin:])
        except ConnectionError:
            # The client has left, as it may.
            self.close_connection = True

    def _pour(self, content: bytes) -> None:
        if self.hub.breaks_after is not None:
            self.wfile.write(content[: self.hub.breaks_after])
            self.close_connection = True
        elif self.hub.holds:
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.hub.held.set()
            self.hub.goes_on.wait()
            self.wfile.write(content[half:])
        else:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str | None = None) -> None:
        headers = {"content-type": "application/json"} | ({"x-error-code": code} if code else {})
        self._send(status, json.dumps({"error": code or "it went wrong"}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(content: bytes) -> bool:
    return len(content) > _LARGE


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lfs(content: bytes) -> Mapping[str, object]:
    """What the hub tells of a file that is not in git itself."""
    if not _is_large(content):
        return {}
    return {"lfs": {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}}
