"""A file server on the loopback interface that can misbehave as servers do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Server:
    """What it serves, how, and what it was asked.

    Attributes:
        content: the bytes of every file it has.
        missing: answer 404.
        failures: how many of the next answers are 503.
        ranges: honour the Range header.
        cuts: how many of the next answers break off.
        cut_at: the bytes of an answer after which it does.
        stall: hold the line open instead of closing it, when it breaks off.
        silent: accept connections and never answer.
        ranges_asked: the Range header of every request, None without.
    """

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    missing: bool = False
    failures: int = 0
    ranges: bool = True
    cuts: int = 0
    cut_at: int = 400_000
    stall: bool = False
    silent: bool = False
    address: str = ""
    ranges_asked: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.ranges_asked.append(asked)
        if self.silent:
            self.closing.wait(10)
            return
        if self.missing:
            request.send_error(404)
            return
        if self.failures > 0:
            self.failures -= 1
            request.send_error(503)
            return
        start = 0
        same = request.headers["If-Range"] == self.etag
        if asked and self.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                request.send_error(416)
                return
            request.send_response(206)
            end = len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            request.send_response(200)
        body = self.content[start:]
        request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if self.cuts > 0:
            self.cuts -= 1
            request.wfile.write(body[: self.cut_at])
            if self.stall:
                self.closing.wait(10)
            return
        request.wfile.write(body)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Runs a server; its `address` ends in a slash."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        server.address = f"http://127.0.0.1:{httpd.server_port}/"
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            httpd.shutdown()


def refused_address() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"
