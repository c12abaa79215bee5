"""Around every request: who may ask, from where, under which id; and every error as problem JSON (RFC 9457)."""

from __future__ import annotations

import http
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam_inspect.errors import Draining, Forbidden, QueueFull, SamInspectError, Starting
from sam_inspect.serve.keys import KeyRing

PROBLEM = "application/problem+json"
log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether nobody else's machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Around an ASGI app: request ids, a line in the log; what is too large or from another site's page is refused.

    Args:
        app: what it guards.
        only_here: the service is bound to loopback, and answers to no other name: a page of another site cannot reach
            it by a name of its own (DNS rebinding).
        most_bytes: of a request's body, by what it says of itself; who lies is cut off by the app.
        count: is told route and status of each request.
    """

    def __init__(self, app: ASGIApp, only_here: bool, most_bytes: int, count: Callable[[str, int], None]) -> None:
        self.app, self.only_here, self.most_bytes, self.count = app, only_here, most_bytes, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, start, status = secrets.token_hex(8), time.perf_counter(), 500
        scope.setdefault("state", {})["request_id"] = request_id

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            if (refused := self._refused(Headers(scope=scope))) is not None:
                await problem(*refused, request_id)(scope, receive, answered)
            else:
                await self.app(scope, receive, answered)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.count(route, status)
            ms = 1000 * (time.perf_counter() - start)
            facts = {"request_id": request_id, "route": route, "status": status, "ms": round(ms, 1)}
            log.info("%s %s %d in %.0f ms, %s", scope["method"], route, status, ms, request_id, extra={"facts": facts})

    def _refused(self, headers: Headers) -> tuple[int, str] | None:
        """Status and reason."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.only_here and not is_loopback(_name(host)):
            return 403, "this service is bound to loopback and answers to no other name"
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "requests from pages of other sites are refused"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.most_bytes:
            return 413, f"{int(length):,} bytes; send at most {self.most_bytes:,}"
        return None


def _name(host: str) -> str:
    """Without the port."""
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


class Authority:
    """A dependency of every guarded route: the name of the key's owner, or a refusal."""

    def __init__(self, keys: KeyRing | None) -> None:
        self.keys = keys

    async def __call__(self, request: Request) -> str | None:
        """Raises Forbidden."""
        if self.keys is None:
            return None
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        secret = secret if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if (owner := self.keys.owner(secret) if secret else None) is None:
            raise Forbidden("no key, or none that is known", "send Authorization: Bearer KEY; see sam-inspect keys")
        return owner


def problem(status: int, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error's answer."""
    title = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "Client Closed Request"
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": request_id}
    return JSONResponse(content, status, headers=headers, media_type=PROBLEM)


def explain_errors(app: FastAPI) -> None:
    """Every exception as problem JSON, nothing of the inside in it."""

    @app.exception_handler(SamInspectError)
    async def ours(request: Request, error: SamInspectError) -> Response:
        headers = {}
        if isinstance(error, QueueFull | Draining | Starting):
            headers["Retry-After"] = str(getattr(error, "retry_after_s", 5))
        if isinstance(error, Forbidden):
            headers["WWW-Authenticate"] = "Bearer"
        if error.http_status >= 500:
            log.warning("%s", error)
        return problem(error.http_status, str(error), request.state.request_id, headers)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), request.state.request_id, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def of_schemas(request: Request, error: RequestValidationError | ValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        detail = f"{where}: {first['msg']}" if where else str(first["msg"])
        return problem(422, " ".join(detail.split())[:500], request.state.request_id)

    @app.exception_handler(ClientDisconnect)
    async def broken_off(request: Request, error: ClientDisconnect) -> Response:
        return problem(499, "the client went away", request.state.request_id)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return problem(500, "something that nobody foresaw; see the service's log", request.state.request_id)
