"""The HTTP API: the page's functions for programs; docs/app.md has a line of curl for each."""

import contextlib
import functools
import json
import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio.to_thread
import fastapi
import pydantic
from fastapi import Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from biggan_jax.app import curve, forms, recipes, timelapse
from biggan_jax.app import studio as studio_lib
from biggan_jax.app.batcher import Busy, Gate
from biggan_jax.config import ConfigError
from biggan_jax.sample.sheets import HoldsNaN

_MOST_REQUESTS = 64  # At once; more are told to come again.
_LOG = logging.getLogger("biggan.app")
_MOST_FOUND = 100  # Classes of a search.


class AskImages(recipes.Images):
    """Images and the form they are wanted in."""

    format: Literal["sheet", "image", "zip", "npz", "json"] = "sheet"
    number: int = pydantic.Field(
        default=0, ge=0, lt=recipes.MAX_IMAGES, description="which, of an image"
    )


class AskNearest(recipes.Images):
    """Images, whose nearest real ones are wanted."""

    format: Literal["png", "json"] = "png"


class AskWalk(recipes.Walk):
    """A walk and the form it is wanted in."""

    format: Literal["mp4", "gif", "png"] = "mp4"


class AskTimelapse(pydantic.BaseModel):
    """The film of a training, or one sheet of it."""

    model_config = pydantic.ConfigDict(extra="forbid")
    step: int | None = pydantic.Field(default=None, ge=0, description="one sheet, as a PNG")
    format: Literal["mp4", "gif"] = "mp4"
    fps: int = pydantic.Field(default=4, ge=1, le=50)


class AskScores(pydantic.BaseModel):
    """The scores at a mode, and where to put the mark."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    truncation: float | None = pydantic.Field(default=None, ge=0.01, le=10)
    mode: Literal["threshold", "hub", "std", "clamp"] | None = None
    format: Literal["json", "png"] = "json"


class Error(pydantic.BaseModel):
    """What every refusal answers."""

    error: str = pydantic.Field(description="one sentence: what, where, what is allowed")


class _Ascii(JSONResponse):
    """JSON that any text fits into, also what is no proper Unicode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def make(studio: studio_lib.Studio) -> fastapi.FastAPI:
    """Returns the API of a studio."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        # Each admitted request holds a thread while it waits for its images.
        anyio.to_thread.current_default_thread_limiter().total_tokens = _MOST_REQUESTS + 16
        yield

    app = fastapi.FastAPI(
        title=f"biggan app: {studio.model.name}",
        description="Images from a BigGAN. Every refusal is one sentence under `error`.",
        docs_url=None,  # Their pages load programs from elsewhere.
        redoc_url=None,
        lifespan=lifespan,
        responses={code: {"model": Error} for code in (404, 413, 422, 429)},
    )
    _add_errors(app)
    gate = Gate(_MOST_REQUESTS, 1 << 40)

    async def waited(work: Callable[[], Response]) -> Response:
        with gate.admitted(0):
            return await run_in_threadpool(work)

    @app.get("/api/model")
    async def model() -> dict[str, Any]:
        """What the model is, and what may be asked of it."""
        return dict(studio_lib.about(studio))

    @app.get("/api/classes")
    async def classes(
        search: Annotated[str, Query(max_length=200)] = "",
    ) -> list[dict[str, Any]]:
        """The classes whose name holds a text, a hundred at most."""
        return find(studio, search)

    @app.get("/api/images", response_class=Response)
    async def get_images(ask: Annotated[AskImages, Query()]) -> Response:
        """Images: a sheet, one PNG, a zip of PNGs, an npz, or JSON with everything."""
        return await waited(lambda: images(studio, ask))

    @app.post("/api/images", response_class=Response)
    async def post_images(ask: AskImages) -> Response:
        """As GET, with the fields as a JSON body."""
        return await waited(lambda: images(studio, ask))

    @app.get("/api/nearest", response_class=Response)
    async def get_nearest(ask: Annotated[AskNearest, Query()]) -> Response:
        """The real images nearest to generated ones, as a sheet of the first or as JSON of all."""
        return await waited(lambda: nearest(studio, ask))

    @app.get("/api/walk", response_class=Response)
    async def get_walk(ask: Annotated[AskWalk, Query()]) -> Response:
        """A walk through latents and classes, as a video or a sheet."""
        return await waited(lambda: walk(studio, ask))

    @app.post("/api/walk", response_class=Response)
    async def post_walk(ask: AskWalk) -> Response:
        """As GET, with the fields as a JSON body."""
        return await waited(lambda: walk(studio, ask))

    @app.get("/api/timelapse", response_class=Response)
    async def film(ask: Annotated[AskTimelapse, Query()]) -> Response:
        """The sheets of a run folder as a film, or one of them."""
        return await waited(lambda: training(studio, ask))

    @app.get("/api/scores", response_class=Response)
    async def scores(ask: Annotated[AskScores, Query()]) -> Response:
        """What `biggan evaluate` found over truncations, with the value at one."""
        return await waited(lambda: known_scores(studio, ask))

    return app


def find(studio: studio_lib.Studio, search: str) -> list[dict[str, Any]]:
    """Returns the classes whose name holds a text, capitals overlooked, or whose number it is."""
    wanted = search.strip().lower()
    known = enumerate(studio.model.class_names)
    found = (
        {"class": i, "name": name}
        for i, name in known
        if wanted in name.lower() or wanted == str(i)
    )
    return [row for _, row in zip(range(_MOST_FOUND), found, strict=False)]


def images(studio: studio_lib.Studio, ask: AskImages) -> Response:
    """Answers a request for images."""
    recipe = recipes.Images(**{name: getattr(ask, name) for name in recipes.Images.model_fields})
    shown = studio.images(recipe)
    kind, name = forms.IMAGES[ask.format]
    if ask.format == "json":
        return _Ascii(forms.record(shown, studio.facts(recipe)))
    if ask.format == "image":
        if ask.number >= len(shown.images):
            raise ConfigError(f"number={ask.number}: must be below {len(shown.images)}.")
        return _file(forms.png(shown.images[ask.number]), kind, forms.name(shown, ask.number))
    if ask.format == "sheet":
        return _file(forms.sheet(shown, title(studio, recipe)), kind, name)
    made = forms.archive(shown) if ask.format == "zip" else forms.npz(shown)
    return _file(made, kind, name)


def nearest(studio: studio_lib.Studio, ask: AskNearest) -> Response:
    """Answers a request for nearest real images."""
    recipe = recipes.Images(**{name: getattr(ask, name) for name in recipes.Images.model_fields})
    found, index = studio.nearest(recipe), studio.index
    assert index is not None  # Or there was an error.
    if ask.format == "json":
        rows = forms.nearest_record(found, index)
        return _Ascii({**studio.facts(recipe), "by": index.extractor.name, "images": rows})
    words = f"{title(studio, recipe)}; nearest by {index.extractor.name}"
    return _file(forms.nearest(found, index, words), "image/png", "nearest.png")


def walk(studio: studio_lib.Studio, ask: AskWalk) -> Response:
    """Answers a request for a walk."""
    recipe = recipes.Walk(**{name: getattr(ask, name) for name in recipes.Walk.model_fields})
    frames = studio.walk(recipe)
    columns = max(2, recipe.frames)
    return _file(forms.moving(frames, ask.format, ask.fps, columns), *forms.WALKS[ask.format])


def training(studio: studio_lib.Studio, ask: AskTimelapse) -> Response:
    """Answers a request for the time-lapse."""
    if ask.step is not None:
        return _file(timelapse.sheet(studio.path, ask.step), "image/png", "training.png")
    kind, _ = forms.WALKS[ask.format]
    frames = _film(studio.path, tuple(timelapse.steps(studio.path)))
    return _file(forms.moving(frames, ask.format, ask.fps, 1), kind, f"training.{ask.format}")


@functools.lru_cache(maxsize=1)
def _film(path, steps):
    return timelapse.frames(path)


def known_scores(studio: studio_lib.Studio, ask: AskScores) -> Response:
    """Answers a request for the scores."""
    truncation, mode = studio.model.check(ask.truncation, ask.mode, 0)
    chosen = curve.at(curve.read(studio.path), studio.model.step, mode)
    if ask.format == "json":
        found = {
            name: {
                "points": [[p.truncation, p.value] for p in points],
                "here": curve.estimate(points, truncation),
            }
            for name, points in chosen.items()
        }
        return _Ascii({"mode": mode, "truncation": truncation, "scores": found})
    if not chosen:
        raise ConfigError("there are no scores over truncations; biggan evaluate makes them.")
    return _file(curve.draw(chosen, truncation), "image/png", "scores.png")


def title(studio: studio_lib.Studio, recipe: recipes.Recipe) -> str:
    """Returns the line above a sheet."""
    facts = studio.facts(recipe)
    words = studio.model.describe(recipe.truncation, recipe.mode)
    return f"{facts['model']}, seed {recipe.seed}, {words}"


def _file(content: bytes, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'inline; filename="{name}"', "Cache-Control": "no-store"}
    return Response(content, media_type=kind, headers=headers)


def _add_errors(app):
    def say(status, text, **headers):
        return _Ascii({"error": text}, status, headers=headers or None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return say(422, recipes.sentence(error.errors()))

    @app.exception_handler(ConfigError)
    async def refused(request, error):
        return say(422, str(error).removeprefix("--"))

    @app.exception_handler(HoldsNaN)
    async def no_picture(request, error):
        return say(422, f"{error} Take another truncation, or another model.")

    @app.exception_handler(Busy)
    async def busy(request, error):
        return say(429, str(error), **{"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def other(request, error):
        text = {
            404: "there is no such page; see /api/model.",
            405: "the method: is none of this page's.",
        }
        return say(error.status_code, text.get(error.status_code, f"{error.detail}."))

    @app.exception_handler(Exception)
    async def failed(request, error):
        _LOG.error("%s failed", request.url.path, exc_info=error)
        return say(500, "the server failed; its log says why.")
