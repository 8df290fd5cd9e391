"""Starting a run from the weights of another model (`init_from`)."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from biggan_jax.config import ConfigError
from biggan_jax.gan import state as state_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.gan.state import GanState
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout
from biggan_jax.train import checkpoint, export, runs

# Keys of `config.model` that may differ: they shape how weights come to be, not what they mean.
# The number of classes is free too, and costs what depends on it.
FREE_KEYS = ("num_classes", "init", "bn_momentum", "bn_group_size", "dtype", "remat")


@dataclasses.dataclass
class _Source:
    """What there is to start from.

    what: for the log.
    model: its `config.model`.
    tensors: named as in a bundle, and the moments of Adam as "g_opt/nu/...", "g_opt/count".
    betas: of its Adam; None where there are no moments.
    class_names: empty where not known.
    """

    what: str
    model: Mapping[str, Any]
    tensors: dict[str, Any]
    betas: tuple[float, float] | None
    class_names: tuple[str, ...]


def start_state(
    config: Mapping[str, Any], mesh: Mesh, class_names: tuple[str, ...] = ()
) -> tuple[GanState, list[str]]:
    """Makes a first state from the bundle or the run's latest checkpoint at `config.init_from`.

    Step and learning rate schedule start at 0; weights, statistics, `u`, the average and, of a run
    whose Adam has the same betas, its moments and their count go on. Before step `ema.start` the
    average is a copy of G, the source's included: set `ema.start=0` to go on averaging.

    Where the source has another number of classes, the modules whose tensors have other shapes for
    that start fresh: G's class table (or the gain and bias tables of its BNs), D's class table
    with its `u`, and their moments; see `_new_moment`. All others are those of the source, bit by
    bit.

    Args:
      config: resolved.
      mesh: where the state is to be.
      class_names: of the data, compared with the source's where the numbers of classes agree.

    Returns:
      The state, and lines that say what was taken, what was reset and what starts fresh.

    Raises:
      ConfigError: if there is no source, it cannot be read, or it is another model; the first key
        that differs is named.
    """
    place = config["init_from"]
    try:
        source = _read(os.path.expanduser(place), mesh)
    except ConfigError as e:
        raise ConfigError(f"init_from={place!r}: {e}") from e
    networks = {name.split("/")[0] for name in source.tensors}
    _check_same_model(config, source, "d" in networks)
    lines = [f"starting from {source.what}"]
    if "d" not in networks:
        lines.append("the source has no discriminator: D starts fresh")
    theirs = _both_generators(source.tensors, networks, lines)
    here = tuple(config["optim"][k] for k in ("beta1", "beta2"))
    if source.betas is None:
        lines.append("the source has no Adam moments: they start fresh")
    elif source.betas != here:
        lines.append(f"Adam's betas are {source.betas} there and {here} here: moments start fresh")
        theirs = {k: v for k, v in theirs.items() if not k.startswith(("g_opt/", "d_opt/"))}

    fresh = step_lib.init_state(config, mesh)
    ours = _flat(fresh)
    classes = source.model["num_classes"], config["model"]["num_classes"]
    other = {_module(k) for k in ours if k in theirs and ours[k].shape != theirs[k].shape}
    reset = [k for k in ours if k in theirs and _module(k) in other]
    taken = {k: theirs[k] for k in ours if k in theirs and _module(k) not in other}
    for name in reset:
        if name.split("/")[1] == "nu":
            taken[name] = _new_moment(np.asarray(theirs[name]), *classes)
    for name in sorted({_network(k) for k in reset}):
        tensors = ", ".join(k for k in reset if _network(k) == name)
        lines.append(f"reset {tensors} ({classes[0]:,} classes there, {classes[1]:,} here)")
    if not reset:
        lines.append(f"{classes[0]:,} classes there and here: nothing is reset")
    if classes[0] == classes[1]:
        lines += _compare_names(source.class_names, class_names)

    # Copied by a program, so that no buffer is shared: the step is given the state to overwrite.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=state_lib.shardings(config, mesh)
    )
    return copy(_put(fresh, ours | taken)), [f"init_from: {line}" for line in lines]


def _read(place, mesh):
    if bundle_lib.is_bundle(place):
        bundle = bundle_lib.read(place)
        what = f"the bundle {bundle.name!r}"
        return _Source(what, bundle.model, bundle.tensors, None, bundle.class_names)
    folder = os.path.join(place, runs.CHECKPOINTS)
    if not os.path.isdir(folder):
        raise ConfigError(
            "this is neither a bundle nor a run folder with checkpoints; of foreign models"
            " 'biggan import' makes bundles."
        )
    config = runs.read_config(place)
    with checkpoint.Checkpoints(folder, keep=None) as saved:
        state, _ = saved.restore(step_lib.abstract_state(config, mesh, whole=True))
    what = f"step {int(state.step):,} of the run {config.name!r}"
    betas = config.optim.beta1, config.optim.beta2
    return _Source(what, config.model, _flat(state), betas, runs.class_names(place))


def _check_same_model(config, source, has_d):
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    flags = []
    for key, value in config["model"].items():
        there, here = plain(source.model[key]), plain(value)
        unused = key in FREE_KEYS or (key.startswith("d_") and not has_d)
        if there != here and not unused:
            flags.append((key, there, here, f"--config.model.{key}={there}".replace(" ", "")))
    if flags:
        key, there, here, _ = flags[0]
        raise ConfigError(
            f"init_from={config['init_from']!r}: model.{key} is {there!r} there and {here!r} here;"
            " only a model that is the same but for its classes can start from it, so add"
            f" {' '.join(flag for *_, flag in flags)}."
        )
    frozen = config["optim"]["freeze_d_blocks"]
    if frozen and not has_d:
        raise ConfigError(
            f"optim.freeze_d_blocks={frozen}: init_from={config['init_from']!r} has no"
            " discriminator whose blocks could stay as they are."
        )


def _both_generators(tensors, networks, lines):
    """A bundle may hold one generator; the other starts as its copy. The average keeps no u."""
    have, lacking = ("ema", "g") if "g" not in networks else ("g", "ema")
    tensors = dict(tensors)
    if lacking not in networks:
        names = {"g": "raw", "ema": "averaged"}
        lines.append(
            f"the source has no {names[lacking]} generator: it starts as a copy of the"
            f" {names[have]} one"
        )
        for name in list(tensors):
            if name.startswith(have + "/"):
                tensors[lacking + name.removeprefix(have)] = tensors[name]
    return tensors


def _flat(state):
    """All arrays of a state but the step and the schedules' counts."""
    flat = export.tensors(state)
    for name in ("g_opt", "d_opt"):
        flat |= layout.flatten(getattr(state, name)[0]._asdict(), name)
    return flat


def _put(state, flat):
    """The inverse of `_flat`; the rest is `state`'s."""
    tree = layout.unflatten(flat)
    fields = {field: tree[a][b] for a, b, field in _split(export.FIELDS)}
    for name in ("g_opt", "d_opt"):
        moments, *rest = getattr(state, name)
        fields[name] = (moments._replace(**tree[name]), *rest)
    return state.replace(**fields)


def _split(fields):
    return [(*prefix.split("/"), field) for prefix, field in fields.items()]


def _module(name):
    """The module a tensor belongs to, in its own network, average or optimizer."""
    network, _, *place = name.split("/")
    return network, *place[:-1]


def _network(name):
    return "d" if name.startswith("d") else "g"


def _new_moment(moment, there, here):
    """Adam's second moment of a class table for another number of classes.

    It cannot start at zero. One count corrects the bias of all tensors, and where that is large
    the first update of a tensor with moment 0 is (1 - beta2)^-1/2 times the learning rate, 32 for
    0.999. Each class therefore gets the mean over the source's classes, column by column. With r
    times fewer classes a row sees r times as many images, and its gradient is sqrt(r) (where they
    contradict each other) to r times as large (where they agree); the larger square is taken, so
    that updates are not longer than usual ones.

    Args:
      moment: [there, C], of the source.
      there: the source's number of classes.
      here: ours.

    Returns:
      [here, C].
    """
    ratio = there / here
    mean = moment.mean(axis=0, dtype=np.float64) * max(ratio, ratio**2)
    return np.tile(mean.astype(np.float32), (here, 1))


def _compare_names(there, here):
    for i, (a, b) in enumerate(zip(there, here, strict=False)):
        if a != b:
            return [f"class {i} is {a!r} there and {b!r} here, and starts as that class does"]
    return []
