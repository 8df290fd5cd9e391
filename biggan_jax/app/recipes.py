"""What can be asked of the app, as fields that are a link, a query and a JSON body alike.

A recipe says everything that an image depends on, so the same recipe gives the same image again.
"""

import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from biggan_jax.config import ConfigError

MAX_IMAGES = 64  # A request.
MAX_FRAMES = 240  # A walk.
MAX_CLASSES = 64  # A request; more are seen by more requests.
MAX_TEXT = 2_000
R = TypeVar("R", bound=BaseModel)
_SHOWN = 80  # Characters of what was asked for that an error repeats.


class Recipe(BaseModel):
    """What images depend on, besides the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    classes: str | None = Field(
        default=None,
        max_length=MAX_TEXT,
        description="names or numbers, with commas between, or all; by default the first ten",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the latents")
    truncation: float | None = Field(
        default=None, ge=0.01, le=10, description="t; by default none, the plain normal"
    )
    mode: Literal["threshold", "hub", "std", "clamp"] | None = Field(
        default=None, description="what truncation means; by default the model's convention"
    )
    chunks: str | None = Field(
        default=None,
        max_length=200,
        description="of a split z: the numbers of the chunks that vary, with commas between; the"
        " others stay as in image 0; by default all vary",
    )
    checkpoint: str | None = Field(
        default=None, max_length=100, description="one of /api/model's; by default the model's own"
    )


class Images(Recipe):
    """Images of a seed: one of each class, then the next of each."""

    num: int | None = Field(
        default=None,
        ge=1,
        le=MAX_IMAGES,
        description="images in all; by default some that are soon made",
    )
    weights: str | None = Field(
        default=None,
        max_length=MAX_TEXT,
        description="one number a class, with commas between: every image is of the mix",
    )
    lock_z: bool = Field(
        default=False, description="the images of a row share a latent: only the class differs"
    )
    sort: bool = Field(
        default=False, description="the most real first, as the discriminator judges"
    )


class Walk(Recipe):
    """A way through latents and classes."""

    points: int | None = Field(
        default=None, ge=2, le=16, description="by default one a class, four of a single class"
    )
    frames: int = Field(default=16, ge=1, le=60, description="from a point to the next")
    how: Literal["spherical", "linear"] = Field(default="spherical", description="between latents")
    loop: bool = Field(default=True, description="end where it began")
    lock_z: bool = Field(default=False, description="move the class alone")
    fps: int = Field(default=12, ge=1, le=50, description="frames a second")


class Page(Images):
    """Everything that is set on the page; its link."""

    keep_z: bool = Field(default=False, description="the random button keeps the seed")
    keep_class: bool = Field(default=False, description="the random button keeps the classes")
    points: int | None = Field(default=None, ge=2, le=16)
    frames: int = Field(default=16, ge=1, le=60)
    how: Literal["spherical", "linear"] = "spherical"
    loop: bool = True
    fps: int = Field(default=12, ge=1, le=50)
    against: str | None = Field(
        default=None, max_length=100, description="the checkpoint compared with"
    )
    tab: Literal["images", "walk", "nearest", "compare", "training", "api"] = "images"

    def images(self) -> Images:
        """Returns the part that the images depend on."""
        return Images(**{name: getattr(self, name) for name in Images.model_fields})

    def walk(self) -> Walk:
        """Returns the walk that is set."""
        return Walk(**{name: getattr(self, name) for name in Walk.model_fields})


def read(kind: type[R], values: Mapping[str, Any]) -> R:
    """Reads a recipe out of a link's fields.

    Raises:
      ConfigError: one sentence about the first thing that is wrong.
    """
    try:
        return kind(**values)
    except pydantic.ValidationError as e:
        raise ConfigError(sentence(e.errors(include_url=False))) from None


def query(recipe: BaseModel, **more: Any) -> str:
    """Returns the fields that differ from the defaults, as the query of a link."""
    fields = recipe.model_dump(exclude_defaults=True) | more
    texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in fields.items()}
    return urllib.parse.urlencode(texts)


def sentence(errors: Any) -> str:
    """Returns one sentence about the first of pydantic's errors."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
    if first["type"] == "extra_forbidden":
        return f"{shortened(place)}: there is no such field; see /api/model."
    if first["type"] == "json_invalid":
        return "the body is no JSON."
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = first.get("input")
    shown = f"={shortened(str(given))}" if isinstance(given, str | int | float) else ""
    return f"{shortened(place) or 'the body'}{shown}: must be {said.rstrip('.')}."


def shortened(text: str) -> str:
    """Returns a text that an error may repeat: printable, in one line and not long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
