"""What reaches the app at all: known paths, small bodies, and nothing of the server's disk.

Gradio serves and takes files under some of its paths, and code under others. This page needs
neither: pictures come from the app's own memory. So what is let through is listed, by what the page
asks for, and all else does not exist.
"""

import json
import re
from typing import Any

MAX_BODY = 64 << 10
_OWN = re.compile(r"/api/(model|classes|images|walk|timelapse|scores)|/api|/openapi\.json")
_GRADIO = re.compile(
    r"/|/config/?|/theme\.css|/manifest\.json|/robots\.txt|/favicon\.ico|/(assets|static)/[\w./-]+"
    r"|/gradio_api/(info/?|queue/(join|data)/?|heartbeat/\w+|startup-events|theme\.css|app_id/?|cancel)"
)
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class TooLarge(Exception):
    """A body of more than `MAX_BODY` bytes."""


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: Any):
        """Takes what is guarded."""
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Lets a request through, or answers it with one sentence."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"]
        known = _OWN.fullmatch(path) or (_GRADIO.fullmatch(path) and ".." not in path)
        if not known:
            await answer(send, 404, "there is no such page; see /api.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await answer(send, 413, f"the body: must be at most {MAX_BODY:,} bytes.")
            return
        taken, begun = 0, False

        async def counted():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise TooLarge
            return message

        async def marked(message):
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, counted, marked)
        except TooLarge:
            if not begun:
                await answer(send, 413, f"the body: must be at most {MAX_BODY:,} bytes.")


async def answer(send: Any, status: int, sentence: str) -> None:
    """Sends an error as `{"error": sentence}`."""
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
