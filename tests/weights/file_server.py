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
        says_length: tell it on HEAD.
        missing: answer 404.
        forbidden: answer 403.
        failures: how many of the next answers are 503.
        cuts: how many of the next answers break off.
        cut_at: the bytes of an answer after which it does.
        closes_early: state as the length of an answer only what will be sent.
        stall: hold the line open instead of closing it, when it breaks off.
        pause: seconds before a file is sent.
        silent: accept connections and never answer.
        gets: the target of every GET request, as it was written.
    """

    content: bytes = CONTENT
    says_length: bool = True
    missing: bool = False
    forbidden: bool = False
    failures: int = 0
    cuts: int = 0
    cut_at: int = 400_000
    closes_early: bool = False
    stall: bool = False
    pause: float = 0
    silent: bool = False
    address: str = ""
    gets: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        gets = request.command == "GET"
        if gets:
            self.gets.append(request.path)
        if self.silent:
            self.closing.wait(10)
            return
        if self.missing or self.forbidden:
            request.send_error(404 if self.missing else 403)
            return
        if self.failures > 0:
            self.failures -= gets
            request.send_error(503)
            return
        cut = gets and self.cuts > 0
        sent = self.content[: self.cut_at] if cut else self.content
        self.cuts -= cut
        request.send_response(200)
        if gets or self.says_length:
            length = len(sent) if self.closes_early else len(self.content)
            request.send_header("Content-Length", str(length))
        request.end_headers()
        if gets:
            self.closing.wait(self.pause)
            request.wfile.write(sent)
        if cut and self.stall:
            self.closing.wait(10)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Runs a server; its `address` ends in a slash."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        do_HEAD = do_GET

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
