"""Reading a run folder: its config and its checkpoints."""

import difflib
import json
import os

import ml_collections
import numpy as np

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sampler, sheets
from biggan_jax.train import checkpoint

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DATA = "data_report.json"
MAX_BATCH = 64


def read_config(run: str) -> ml_collections.FrozenConfigDict:
    """Returns the resolved config of a run folder.

    Raises:
      ConfigError: if the folder is none.
    """
    path = os.path.join(run, CONFIG)
    if not os.path.isfile(path):
        raise config_lib.ConfigError(f"{run!r} is not a run folder: it holds no {CONFIG}.")
    with open(path) as f:
        return config_lib.from_json(f.read())


def load_state(run: str, step: int | None = None):
    """Reads a run's latest checkpoint, or that of `step`, onto one device.

    Returns:
      The resolved config, the mesh of one device and the state.

    Raises:
      ConfigError: if the folder is no run or holds no such checkpoint.
    """
    config = read_config(run)
    mesh = mesh_lib.make_mesh(1)
    with checkpoint.Checkpoints(os.path.join(run, CHECKPOINTS), keep=None) as saved:
        state, _ = saved.restore(step_lib.abstract_state(config, mesh), step)
    return config, mesh, state


def load_samples(run: str, step: int | None = None) -> sampler.Samples:
    """Returns the generator of a run folder, ready to sample on one device; see `load_state`.

    A pod's batch does not fit there: batches are cut to `MAX_BATCH`, and as many more passes make
    the standing statistics.
    """
    config, mesh, state = load_state(run, step)
    changed = ml_collections.ConfigDict(config)
    size, passes = changed.sample.standing_batch, changed.sample.standing_passes
    changed.sample.standing_batch = min(size, MAX_BATCH)
    changed.sample.standing_passes = -(-passes * size // changed.sample.standing_batch)
    return sampler.Samples(ml_collections.FrozenConfigDict(changed), state, mesh)


def class_names(run: str) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained on, from its data report."""
    read_config(run)
    path = os.path.join(run, DATA)
    try:
        with open(path) as f:
            return tuple(json.load(f)["class_names"])
    except (OSError, ValueError, KeyError, TypeError):
        raise config_lib.ConfigError(f"{path!r} is missing or damaged: train writes it.") from None


def write_sheet(
    run: str,
    out: str,
    classes: str | None = None,
    num: int = 8,
    seed: int = 0,
    truncation: float | None = None,
    step: int | None = None,
) -> str:
    """Writes a sheet of images, one class a column, from EMA weights and standing statistics.

    Args:
      run: a run folder.
      out: the PNG to write.
      classes: numbers or names with commas between; None for the first ten.
      num: images a class.
      seed: of the latents.
      truncation: threshold on |z|, or None.
      step: which checkpoint; None for the latest.

    Returns:
      `out`.

    Raises:
      ConfigError: if an argument or the folder cannot be used; nothing has been written then.
    """
    latents.check_truncation(truncation)
    if num < 1:
        raise config_lib.ConfigError(f"--num={num}: must be at least 1.")
    if not out.lower().endswith(".png"):
        raise config_lib.ConfigError(f"--out={out}: must end in .png.")
    if not 0 <= seed < 2**31:
        raise config_lib.ConfigError(f"--seed={seed}: must be at least 0 and below 2**31.")
    files.check_folder(os.path.dirname(out) or ".", "--out")
    names = class_names(run)
    picked = pick_classes(classes, names)
    samples = load_samples(run, step)
    # Row by row, so that the latents of a sheet's first rows stay when more rows are asked for.
    labels = np.tile(picked, num)
    images = samples.sample(labels, seed, truncation)
    title = f"{samples.config.name}: step {int(samples.state.step):,}, seed {seed}, " + (
        "no truncation" if truncation is None else f"threshold truncation {truncation:g}"
    )
    columns = [names[i] for i in picked]
    picture = sheets.sheet(images, len(picked), column_labels=columns, title=title)
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    sheets.save_png(picture, out)
    return out


def pick_classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """Reads `--classes`: numbers or names with commas between, the first ten where there is none.

    Raises:
      ConfigError: naming what is no class, and the nearest name.
    """
    if text is None:
        return list(range(min(10, len(names))))
    picked = []
    for word in (w.strip() for w in text.split(",")):
        if word.isdecimal() and int(word) < len(names):
            picked.append(int(word))
        elif word in names:
            picked.append(names.index(word))
        else:
            near = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise config_lib.ConfigError(
                f"--classes: {word!r} is no class: there are 0 to {len(names) - 1}{hint}."
            )
    return picked
