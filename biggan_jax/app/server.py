"""`biggan app`: binds, loads, compiles, then serves page and API until it is told to end."""

import contextlib
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Iterator

from biggan_jax.config import ConfigError


def serve(
    path: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    step: int | None = None,
    compare: str | None = None,
    devices: int = 1,
    together: bool = True,
    index: str | None = None,
) -> None:
    """Serves a model until SIGINT or SIGTERM.

    Args:
      path: a run folder or a bundle.
      host: the address to bind to.
      port: 0 for any that is free.
      step: which checkpoint of a run folder; None for the latest.
      compare: another run folder or bundle to compare with.
      devices: see `api.load`.
      together: whether requests are computed together; only measurements want them apart.
      index: a file of real images to find the nearest in, see `evaluate.index`.

    Raises:
      ConfigError: if the model cannot be loaded or the port cannot be had.
    """
    _check_packages()
    # What Gradio would tell others of itself, or keep of what is done on the page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    begun = time.perf_counter()
    # Until the server listens for them there is nothing to finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    with _bound(host, port) as bound:
        print("biggan app: loading", file=sys.stderr, flush=True)
        import uvicorn

        from biggan_jax.app import guard, html, http_api, page
        from biggan_jax.app.studio import Studio

        studio = Studio(path, step, compare, devices, together, index)
        try:
            print("biggan app: compiling", file=sys.stderr, flush=True)
            app = http_api.make(studio)
            page.first(studio)
            page.mount(app, studio)
            guarded = guard.Guard(app, html.first_look(studio))

            class Server(uvicorn.Server):
                """Says when it is ready; ends with exit code 0 when it is asked to."""

                @contextlib.contextmanager
                def capture_signals(self) -> Iterator[None]:
                    numbers = (signal.SIGINT, signal.SIGTERM)
                    before = [signal.signal(number, self.handle_exit) for number in numbers]
                    try:
                        yield
                    finally:
                        for number, handler in zip(numbers, before, strict=True):
                            signal.signal(number, handler)

                def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
                    self.should_exit = True
                    guarded.close()

                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    place = f"[{host}]" if ":" in host else host
                    print(
                        f"biggan app: http://{place}:{bound.getsockname()[1]} is ready after"
                        f" {time.perf_counter() - begun:.0f} s",
                        flush=True,
                    )

            config = uvicorn.Config(
                guarded,
                log_level="warning",
                access_log=False,
                limit_concurrency=512,  # Connections.
                timeout_graceful_shutdown=2,
                ws="none",
            )
            Server(config).run([bound])
        finally:
            studio.close()


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Takes the port at once, before seconds are spent on a model."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"--port={port}: must be from 0 to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise ConfigError(f"--host={host}: is no address of this machine: {e.strerror}.") from None
    with socket.socket(found[0], socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(found[4])
        except OSError as e:
            raise ConfigError(
                f"--port={port}: cannot be had on {host}: {e.strerror}; name another, or 0 for any."
            ) from None
        yield bound


def _check_packages() -> None:
    import importlib.util

    for name in ("gradio", "av"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"biggan app needs {name}: pip install 'biggan-jax[app]'.")
