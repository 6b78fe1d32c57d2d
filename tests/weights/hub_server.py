"""A model hub on the loopback interface: its protocol for downloads and small uploads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it has and what it was asked.

    Attributes:
        repositories: the files of each, by `OWNER/NAME`.
        silent: accept connections and never answer.
        broken: answer 500.
        revisions: the commit of each branch and tag, and of itself.
        moves_to: the commit that `main` is at once a config was sent; None to leave it.
        asked: the method, repository and file of every request for a file.
        revisions_asked: the revision in each of these.
        token: what uploads have to come with.
        read_only: nobody may write, also with the token.
        created: what the creation of each repository asked for.
    """

    repositories: dict[str, dict[str, bytes]]
    silent: bool = False
    broken: bool = False
    address: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    moves_to: str | None = None
    revisions_asked: list[str] = field(default_factory=list)
    token: str = "hf_right"
    read_only: bool = False
    created: list[dict] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/api/"):  # what the client asks of its own accord
            self._refuse(request, 404, "NotFound")
            return
        owner, name, _, revision, file = request.path.removeprefix("/").split("/")
        self.revisions_asked.append(revision)
        self.asked.append((request.command, f"{owner}/{name}", file))
        if self.silent:
            self.closing.wait(10)
            return
        if self.broken:
            self._refuse(request, 500, "Broken")
            return
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            self._refuse(request, 401, "RepoNotFound")
        elif revision not in self.revisions:
            self._refuse(request, 404, "RevisionNotFound")
        elif file not in files:
            self._refuse(request, 404, "EntryNotFound")
        else:
            request.send_response(200)
            request.send_header("X-Repo-Commit", self.revisions[revision])
            request.send_header("ETag", f'"{hashlib.sha1(files[file]).hexdigest()}"')
            request.send_header("Content-Length", str(len(files[file])))
            request.end_headers()
            if request.command == "GET":
                request.wfile.write(files[file])
                if file == "config.json" and self.moves_to:
                    self.revisions["main"] = self.moves_to

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Answers the requests of an upload: creation, look at the card, kinds of files, commit."""
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if self.silent:
            self.closing.wait(10)
        elif request.headers.get("Authorization") != f"Bearer {self.token}":
            self._refuse(request, 401, "")
        elif self.read_only:
            self._refuse(request, 403, "")
        elif request.path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self._answer(request, {"url": f"{self.address}/{name}"})
        elif request.path == "/api/validate-yaml":
            self._answer(request, {"errors": [], "warnings": []})
        elif "/preupload/" in request.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(request, {"files": files})
        else:
            _, _, _, owner, name, _, _ = request.path.split("/")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[f"{owner}/{name}"][line["value"]["path"]] = content
            commit = f"{self.address}/{owner}/{name}/commit/{COMMIT}"
            self._answer(request, {"success": True, "commitUrl": commit, "commitOid": COMMIT})

    def _answer(self, request: BaseHTTPRequestHandler, content: dict) -> None:
        text = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Runs a hub; its `address` has no slash at the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.take(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        hub.address = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.closing.set()
            httpd.shutdown()
