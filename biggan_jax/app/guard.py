"""What reaches the app at all: known paths, small bodies, and nothing of the server's disk.

Gradio serves and takes files under some of its paths, and code under others. This page needs
neither: pictures come from the app's own memory. So what is let through is listed, by what the page
asks for, and all else does not exist.
"""

import asyncio
import json
import re
from typing import Any

MAX_BODY = 64 << 10
_OWN = {
    "/api/model": ("GET",),
    "/api/classes": ("GET",),
    "/api/images": ("GET", "POST"),
    "/api/nearest": ("GET",),
    "/api/walk": ("GET", "POST"),
    "/api/timelapse": ("GET",),
    "/api/scores": ("GET",),
    "/openapi.json": ("GET",),
}
_GRADIO = re.compile(
    r"/|/config/?|/theme\.css|/manifest\.json|/robots\.txt|/favicon\.ico"
    r"|/(assets|static)(/[\w-][\w.-]*)+"
    r"|/gradio_api/(info|queue/join|queue/data|heartbeat/\w+|startup-events|app_id|cancel)/?"
)
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_TOO_LARGE = f"the body: must be at most {MAX_BODY:,} bytes."


class TooLarge(Exception):
    """A body of more than `MAX_BODY` bytes."""


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: Any, first_look: str = ""):
        """Wraps an app.

        Args:
          app: what is guarded.
          first_look: HTML that the page at / begins with. Gradio adds nothing to a page before its
            program has loaded, which takes longer than pictures do.
        """
        self._app = app
        self._first_look = first_look.encode()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Hangs up on those who only listen, as an open page does; to be called by the loop."""
        self._closing.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Lets a request through, or answers it with one sentence."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        path, methods = scope["path"], _OWN.get(scope["path"])
        if methods is None and not _GRADIO.fullmatch(path):
            await answer(send, 404, "there is no such page; see /api/model.")
            return
        if methods is not None and scope["method"] not in methods:
            await answer(send, 405, f"the method of {path}: must be {' or '.join(methods)}.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await answer(send, 413, _TOO_LARGE)
            return
        # A link with a state has other pictures.
        first = path == "/" and not scope["query_string"] and bool(self._first_look)
        if first:  # As it is, or there would be nothing to find in it.
            plain = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            scope = {**scope, "headers": plain}
        taken, begun = 0, False

        async def counted():
            nonlocal taken
            message = await self._received(receive)
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise TooLarge
            return message

        async def marked(message):
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(self._with_first_look(message) if first else message)

        try:
            await self._app(scope, counted, marked)
        except TooLarge:
            if not begun:
                await answer(send, 413, _TOO_LARGE)

    def _with_first_look(self, message):
        if message["type"] == "http.response.start":
            kept = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
            return message | {"headers": kept}
        place = b"<gradio-app"
        body = message.get("body", b"").replace(place, self._first_look + place, 1)
        return message | {"body": body}

    async def _received(self, receive):
        """What comes next, or the end if the server closes."""
        tasks = [asyncio.ensure_future(x) for x in (receive(), self._closing.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else {"type": "http.disconnect"}
        finally:
            for task in tasks:
                task.cancel()


async def answer(send: Any, status: int, sentence: str) -> None:
    """Sends an error as `{"error": sentence}`."""
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
