"""A small stand-in of the Hugging Face hub's HTTP interface, written from its documentation; it keeps every request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "secret" * 5


@dataclass
class Repository:
    """Commits, each a whole tree of files, and the names that point to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        number = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[number] = files
        self.refs[ref] = number
        return number

    def commit_folder(self, folder: Path, ref: str = "main", **changed: bytes) -> str:
        """Commit the files of a folder; `changed` has other contents, by names with `__` for the dot."""
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return self.commit({**files, **{name.replace("__", "."): content for name, content in changed.items()}}, ref)


class Hub:
    """The server's state.

    Attributes:
        repositories: by owner/name.
        requests: (method, path) in their order.
        tokens: the `Authorization` of each request.
        fails: an HTTP status for everything; None to work.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        self.fails: int | None = None
        self.url = ""

    def fetched(self) -> list[str]:
        """The names of the files whose content was fetched."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: bytes | object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, **headers: str) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        self.hub.tokens.append(self.headers.get("Authorization"))
        parts = path.strip("/").split("/")
        if self.hub.fails:
            self.reply(self.hub.fails, {"error": "broken"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif parts[0] == "api" and len(parts) < 4:
            self.reply(404, {"error": path})
        elif parts[0] == "api":
            self.api(*parts[2:6], body=body)
        else:
            self.resolve(parts)

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

    def may(self, name: str) -> Repository | None:
        """The repository, if the request may see it; otherwise an error was sent."""
        found, known = self.hub.repositories.get(name), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            self.error(404 if known else 401, "RepoNotFound")  # as the hub: who may not see it learns nothing
        elif found.gated:
            self.error(403, "GatedRepo")
        else:
            return found
        return None

    def create(self, wanted: dict[str, str]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.hub.repositories[name] = Repository(private=private)
            self.hub.repositories[name].commit({".gitattributes": b"*.onnx filter=lfs\n"})
        self.reply(status, {"url": f"{self.hub.url}/{name}"})

    def api(self, owner: str, name: str, what: str = "", revision: str = "main", *, body: bytes) -> None:
        repository = self.may(f"{owner}/{name}")
        if repository is None:
            return
        if what == "branch":
            if revision not in repository.refs:
                repository.refs[revision] = repository.refs["main"]
            self.reply(200, {})
            return
        held = repository.commits[repository.refs[revision]]
        if what == "tree":
            entries = [{"type": "file", "path": name, "size": len(held[name]), "oid": "0" * 40} for name in held]
            self.reply(200, entries, Content_Type="application/json")
        elif what == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply(200, {"files": [{"path": one["path"], **modes} for one in json.loads(body)["files"]]})
        elif what == "commit":
            files = dict(held)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            number = repository.commit(files, revision)
            url = f"{self.hub.url}/{owner}/{name}/commit/{number}"
            self.reply(200, {"commitUrl": url, "commitOid": number, "hookOutput": "", "success": True})
        else:
            self.reply(404, {"error": what})

    def resolve(self, parts: list[str]) -> None:
        repository = self.may("/".join(parts[:2]))
        if repository is None:
            return
        revision, file = parts[3], "/".join(parts[4:])
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self.error(404, "RevisionNotFound")
        elif file not in repository.commits[commit]:
            self.error(404, "EntryNotFound", X_Repo_Commit=commit)
        else:
            content = repository.commits[commit][file]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(200, content, X_Repo_Commit=commit, ETag=etag)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port of the loopback interface."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def as_the_hub(cache: Path) -> Iterator[Hub]:
    """Run a hub that `huggingface_hub` uses in this process, with a cache of its own and no token."""
    from huggingface_hub import constants

    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        yield hub
