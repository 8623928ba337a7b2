"""The pages of the demo: `/`, `/predict` and `/health`. Everything that is wrong is a JSON {"error": line} with its status."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import json
import re
from collections import Counter
from concurrent.futures import Future
from functools import cached_property
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from imgrec_jax.inference.command import note
from imgrec_jax.inference.drawing import one_line
from imgrec_jax.inference.outputs import plain
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.inference.results import Result
from imgrec_jax.pages import html
from imgrec_jax.serving import uploads
from imgrec_jax.serving.uploads import Limits, UploadError
from imgrec_jax.serving.work import METHODS, Answer, BadImage, Worker

DRAWING = 2  # pictures that are drawn at a time: each is decoded again
HELD = 256_000_000  # bytes of requests that are read or answered at a time


class Server:
    """A run behind HTTP.

    Attributes:
      inside: requests that are being read or answered; more than `most` are refused, and those beyond HELD bytes of them.
      counts: of answered, refused (429, 503), bad (4xx) and failed (500) requests.
    """

    def __init__(self, run: Predictor, worker: Worker, limits: Limits, most: int):
        self._run, self._worker, self._limits, self._most = run, worker, limits, most
        self.inside, self._held, self.counts = 0, 0, Counter[str]()

    @cached_property
    def _drawing(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(DRAWING)

    def app(self, local: bool) -> Starlette:
        """The application; local: it answers to names of this machine alone."""
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/predict", self._predict, methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=[Middleware(_Gate, local)], exception_handlers={HTTPException: _refused})

    @property
    def described(self) -> dict[str, Any]:
        """What a page or a client needs to know of the run."""
        run = self._run
        return {
            "run": run.workdir.name,
            "task": run.config.task,
            "checkpoint": run.checkpoint,
            "step": run.step,
            "class_names": list(run.class_names),
            "image_shape": list(run.image_shape) if run.image_size else None,
            "explain": list(METHODS),
            "explain_default": self._worker.usual,
            "max_bytes": self._limits.bytes,
            "max_pixels": self._limits.pixels,
        }

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(*self._whole_page)

    @cached_property
    def _whole_page(self) -> tuple[str, int, dict[str, str]]:
        """(the page, its status, its headers: nothing may be fetched from elsewhere, and no other script may run)."""
        text = (resources.files("imgrec_jax.serving") / "page.html").read_text(encoding="utf-8")
        text = text.replace("{{name}}", one_line(html.escape(self._run.workdir.name)))
        text = text.replace("{{run}}", json.dumps(self.described).replace("<", "\\u003c"))
        script = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = {
            "default-src": "'none'",
            "script-src": f"'sha256-{digest}'",
            "style-src": "'unsafe-inline'",
            "img-src": "data: blob:",
            "media-src": "blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        return text, 200, {"Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items())}

    async def _health(self, request: Request) -> Response:
        values = {**self.described, "inside": self.inside, "queue": self._most, "compiled": len(self._run.compiled)}
        state = self._worker.state
        return _Json({"status": state, **values, **self.counts}, 503 if state == "ended" else 200)

    async def _predict(self, request: Request) -> Response:
        size = uploads.size(request, self._limits)
        if self.inside >= self._most or (self.inside and self._held + size > HELD):
            self.counts["refused"] += 1
            with contextlib.suppress(UploadError):
                await uploads.drain(request, self._limits)
            return _error(429, f"{self.inside} requests are waiting already; try again in a moment", {"Retry-After": "1"})
        self.inside, self._held = self.inside + 1, self._held + size
        try:
            answer = await self._answer(request)
            self.counts["answered"] += 1
            return _Json(answer)
        except UploadError as error:
            self.counts["bad"] += 1
            return _error(error.status, error.line)
        except BadImage as error:
            self.counts["bad"] += 1
            return _error(400, str(error))
        except asyncio.CancelledError:  # of a server that ends: its answer, in place of a traceback
            self.counts["refused"] += 1
            return _error(503, "the server was stopped")
        except Exception as error:
            self.counts["failed"] += 1
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            note(f"error: {line}")
            return _error(500, f"the image could not be answered ({line})")
        finally:
            self.inside, self._held = self.inside - 1, self._held - size

    async def _answer(self, request: Request) -> dict[str, Any]:
        upload = await uploads.read(request, self._limits)
        picture, method = uploads.flag(upload.fields, "picture"), uploads.choice(upload.fields, "explain", METHODS)
        found = await _outcome(request, self._worker.submit(upload.name, upload.data, method))
        answer = plain(found.result.to_json())
        if picture:
            answer["picture"] = await anyio.to_thread.run_sync(_drawn, found.result, limiter=self._drawing)
        if method:
            answer["explanation"] = None if found.explanation is None else html.data_uri(found.explanation)
            answer["explained"] = found.said
        return answer


async def _outcome(request: Request, future: Future[Answer]) -> Answer:
    """The answer, which is not waited for longer than the client does."""
    waiting = asyncio.wrap_future(future)
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=1.0)
            if not waiting.done() and await request.is_disconnected():
                raise UploadError(400, "the client left before its answer was there")
        return waiting.result()
    finally:
        waiting.cancel()


def is_local(host: str) -> bool:
    """Whether a name or an address, with or without a port, is this machine's to itself: localhost, 127.0.0.0/8 or ::1."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Gate:
    """Keeps the pages of other sites out, which a browser on this machine may show: what they send needs no leave of ours."""

    def __init__(self, app: ASGIApp, local: bool):
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._local and not is_local(host):
            return _error(400, f"no host of this server: {host[:100]!r}; it answers to localhost")
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if request.method == "POST" and (foreign or request.headers.get("sec-fetch-site") == "cross-site"):
            return _error(403, "a request of another site's page; this server answers its own page, and programs")
        return None


class _Json(JSONResponse):
    """In ASCII: a name of a class or a run may be a folder's, which need not be UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def _drawn(result: Result) -> str:
    """The answer drawn on its image, as a PNG of at most `html.LARGEST` pixels a side."""
    return html.data_uri(_shrunk(result.draw()))


def _shrunk(image: np.ndarray) -> np.ndarray:
    import cv2

    step = max(image.shape[:2]) / html.LARGEST
    if step <= 1:
        return image
    size = max(int(image.shape[1] / step), 1), max(int(image.shape[0] / step), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _error(status: int, line: str, headers: dict[str, str] | None = None) -> Response:
    return _Json({"error": line}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "/ (the page), /health, and POST /predict"
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}; there are {known}")
