"""What the page's server serves: a table from paths to bytes, complete before the first request.

A request's path never reaches the file system: what is not in the table does not exist. Headers keep the browser from
contacting any other origin.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sfumato import __version__
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DEOBFUSCATOR_ONNX, MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.lab_files import refuse_deobfuscator
from sfumato.errors import BundleError, ServingError

_HERE = Path(__file__).resolve().parent
RUNTIME = _HERE / "onnxruntime-web"
FRONTIER = _HERE / "frontier.json"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}


POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""Source: W3C, Content Security Policy Level 3. The browser itself refuses any request to another origin."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CACHING = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}  # cached, and revalidated each time


@dataclass(frozen=True)
class Asset:
    """One thing that can be fetched.

    Attributes:
        media_type: its `Content-Type`.
        bodies: its bytes by `Content-Encoding`: "br", "gzip", and "identity" for the bytes as they are.
        etag: changes when the content does.
    """

    media_type: str
    bodies: Mapping[str, bytes] = field(repr=False)
    etag: str

    def body(self, accepted: str) -> tuple[str, bytes]:
        """Return the encoding to use and the bytes, for the value of an `Accept-Encoding` header."""
        wanted = [coding.replace(" ", "") for coding in accepted.split(",")]
        named = {coding.split(";")[0] for coding in wanted if ";q=0" not in coding}
        encoding = next((known for known in ("br", "gzip") if known in named and known in self.bodies), "identity")
        body = self.bodies.get(encoding)
        return encoding, self._unpacked if body is None else body

    @cached_property
    def _unpacked(self) -> bytes:
        """The bytes as they are, once for all who want them so."""
        return gzip.decompress(self.bodies["gzip"])


class Pages:
    """The ASGI application that serves a table of assets (see `collect`), and nothing else."""

    def __init__(self, assets: Mapping[str, Asset]) -> None:
        self._assets = assets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        await self._respond(Request(scope))(scope, receive, send)

    def _respond(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD\n", 405, {**HEADERS, "Allow": "GET, HEAD"})
        asset = self._assets.get(request.url.path)
        if asset is None:
            return PlainTextResponse("there is no such page\n", 404, HEADERS)
        headers = {**HEADERS, **CACHING, "ETag": asset.etag}
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        encoding, body = asset.body(request.headers.get("accept-encoding", ""))
        if encoding != "identity":
            headers["Content-Encoding"] = encoding
        return Response(body, headers=headers, media_type=asset.media_type)


def collect(obfuscators: Sequence[Bundle], classifier: Bundle) -> dict[str, Asset]:
    """Collect everything that the page needs, by path.

    Args:
        obfuscators: the bundles that the visitor may choose from, in this order.
        classifier: the bundle that is served, for the prediction on the original, which the browser computes by itself.

    Raises:
        ServingError: this installation lacks ONNX Runtime Web, or there is no obfuscator.
        BundleError: a bundle's file cannot be read, or one that did not come with sfumato has a deobfuscator.
    """
    if not obfuscators:
        raise ServingError("the page needs at least one obfuscator's bundle")
    table = {"/": _asset(_HERE / "page" / "index.html")}
    for folder, prefix in ((_HERE / "page", "/page"), (_HERE / "js", "/js")):
        table |= {f"{prefix}/{file.name}": _asset(file) for file in folder.iterdir() if file.suffix in MEDIA_TYPES}
    table |= _runtime()
    for place, bundle in enumerate(obfuscators):
        refuse_deobfuscator(bundle)
        table |= _bundle(f"/bundles/{place}", bundle, (OBFUSCATOR_ONNX, DEOBFUSCATOR_ONNX))
    table |= _bundle("/classifier", classifier, (CLASSIFIER_ONNX,))
    table["/samples.png"] = _asset(shipped.SHEET)
    table["/frontier.json"] = _asset(FRONTIER)
    table["/studio.json"] = _json(
        {
            "version": __version__,
            "model": classifier.name,
            "bundles": [f"/bundles/{place}/" for place in range(len(obfuscators))],
            "classifier": "/classifier/",
            "samples": json.loads(shipped.SHEET_LABELS.read_text(encoding="utf-8")),
        }
    )
    return table


def _runtime() -> dict[str, Asset]:
    """Collect ONNX Runtime Web, as the build stored it."""
    files = sorted(RUNTIME.glob("*.gz"))
    if not files or not (RUNTIME / "version.json").is_file():
        raise ServingError(
            "this installation lacks ONNX Runtime Web, because npm was not there when it was built; install npm and "
            "then sfumato again: pip install --force-reinstall --no-deps sfumato, or -e . in a clone"
        )
    table = {}
    for file in files:
        packed = file.read_bytes()
        bodies = {"gzip": packed, "br": file.with_suffix(".br").read_bytes()}
        table[f"/onnxruntime-web/{file.stem}"] = Asset(MEDIA_TYPES[Path(file.stem).suffix], bodies, _etag(packed))
    return table


def _bundle(prefix: str, bundle: Bundle, names: Sequence[str]) -> dict[str, Asset]:
    """Collect a bundle's manifest, in this version's schema, and those of its files that a browser can use."""
    files = {f"{prefix}/{name}": _asset(bundle.path / name) for name in names if name in bundle.files}
    return {f"{prefix}/{MANIFEST}": _json(bundle.to_json()), **files}


def _asset(file: Path) -> Asset:
    try:
        return _packed(file.read_bytes(), MEDIA_TYPES[file.suffix])
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror or error}") from error


def _json(value: object) -> Asset:
    return _packed(json.dumps(value).encode(), MEDIA_TYPES[".json"])


def _packed(content: bytes, media_type: str) -> Asset:
    return Asset(media_type, {"identity": content, "gzip": gzip.compress(content, 6, mtime=0)}, _etag(content))


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
