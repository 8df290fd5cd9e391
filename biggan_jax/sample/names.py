"""Class names, and how a user picks classes by them.

`imagenet_names.txt` has a line for each of ImageNet-1k's classes, in their order: the WordNet
synset, then the name that torchvision gives it (`torchvision/models/_meta.py`, BSD 3-Clause,
copyright Soumith Chintala 2016), which no two classes share.
"""

import difflib
import functools
import importlib.resources
from collections.abc import Sequence

from biggan_jax.config import ConfigError


@functools.cache
def imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the 1,000 synsets ("n01440764", ...) and the 1,000 names ("tench", ...)."""
    text = importlib.resources.files("biggan_jax.sample").joinpath("imagenet_names.txt").read_text()
    pairs = [line.split(" ", 1) for line in text.splitlines()]
    return tuple(synset for synset, _ in pairs), tuple(name for _, name in pairs)


def of_model(known: Sequence[str], classes: int) -> tuple[str, ...]:
    """Returns the names of a model's classes.

    Args:
      known: those that its data set gave, or nothing.
      classes: how many classes it has.

    Returns:
      `known`, but ImageNet's names for its synsets, and for 1,000 classes of which nothing is
      known; numbers where nothing is known of other models.
    """
    synsets, names = imagenet()
    if tuple(known) == synsets or (not known and classes == len(names)):
        return names
    return tuple(known) or tuple(str(i) for i in range(classes))


def pick(text: str, names: Sequence[str]) -> list[int]:
    """Reads classes: "all", or numbers and names with commas between; ImageNet's synsets too.

    A name counts as written, even where it is a number; else capitals are overlooked.

    Raises:
      ConfigError: naming what is no class, and the nearest name.
    """
    if text.strip() == "all":
        return list(range(len(names)))
    places = {name.lower(): i for i, name in reversed(list(enumerate(names)))}
    synsets, imagenet_names = imagenet()
    if tuple(names) == imagenet_names:
        places |= {synset: i for i, synset in enumerate(synsets)}
    exact = {name: i for i, name in reversed(list(enumerate(names)))}
    picked = []
    for word in (w.strip() for w in text.split(",")):
        if word in exact:
            picked.append(exact[word])
        elif word.isdecimal() and int(word) < len(names):
            picked.append(int(word))
        elif word.lower() in places:
            picked.append(places[word.lower()])
        else:
            near = difflib.get_close_matches(word.lower(), places, n=1)
            hint = f"; did you mean {names[places[near[0]]]!r}?" if near else ""
            raise ConfigError(
                f"--classes: {word!r} is no class: there are 0 to {len(names) - 1}{hint}."
            )
    return picked
