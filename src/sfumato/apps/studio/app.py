"""Serve the page's files over HTTP, with headers that keep the browser from contacting any other origin."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sfumato.apps.studio.assets import Asset

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
