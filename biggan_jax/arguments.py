"""The command line's verbs and their options."""

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biggan_jax import __version__
from biggan_jax.config import ConfigError


def parser(run: Mapping[str, Callable[[argparse.Namespace], Any]]) -> argparse.ArgumentParser:
    """Returns the parser; what it parses has a function of `run`, by verb, as `run`."""
    made = argparse.ArgumentParser(
        prog="biggan",
        description="Train, sample, import and export BigGAN in JAX.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"biggan-jax {__version__}")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, text):
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run[name])
        return sub

    sub = verb("train", "Train a model; the same command goes on where a run stopped.")
    sub.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT")
    sub.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config")
    sub.add_argument("--workdir", help="the run folder; needed unless --dry-run")
    sub.add_argument("--dry-run", action="store_true", help="print config and parameters, leave")

    sub = verb("plan", "Say whether a config fits TPUs or GPUs, and how fast it can be.")
    sub.add_argument("--config", help="FILE.py or FILE.py:VARIANT")
    sub.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config")
    sub.add_argument("where", metavar="SLICE", nargs="?", help="the same as --slice")
    sub.add_argument(
        "--slice",
        help="v3-512, v5e-16, tpu7x-64, ...; v4-128x2, two slices; a topology such as v3:8x8; or"
        " GPUs, which are estimated, not compiled for: gpu:h100x8",
    )
    sub.add_argument("--slices", help="several, with commas between, to compare")
    sub.add_argument(
        "--run",
        metavar="FOLDER",
        dest="of_run",
        help="instead: plan a run's config beside the step time that the run measured",
    )
    sub.add_argument("--sweep", action="store_true", help="find the cheapest setting that fits")
    sub.add_argument(
        "--quick", action="store_true", help="memory, FLOPs and collectives alone; of TPUs"
    )
    sub.add_argument("--price-per-chip-hour", type=float, metavar="X", help="to tell the cost")
    sub.add_argument("--hbm-limit", type=float, metavar="GIB", help="of a device; default: all")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = verb("sample", "Write images: a sheet, a file each, or one .npz.")
    sub.add_argument("folder", metavar="PATH", help="a run folder, a bundle or an export")
    sub.add_argument("--out", help="a sheet, .png, a class a column; default: samples.png")
    sub.add_argument("--images", metavar="FOLDER", help="a PNG an image, in a new folder")
    sub.add_argument("--npz", metavar="FILE", help="arr_0: uint8 [N, H, W, 3]; arr_1: labels")
    sub.add_argument("--num", type=int, default=8, help="images a class; default: 8")
    sub.add_argument(
        "--classes",
        help="names or numbers, with commas, or all; default: the first ten on a sheet, else all",
    )
    _add_sampling(sub)

    sub = verb("walk", "Write a walk through latents and classes: .png, .gif or .mp4.")
    sub.add_argument("folder", metavar="PATH", help="a run folder, a bundle or an export")
    sub.add_argument("--out", default="walk.gif", help="a .png, .gif or .mp4; default: walk.gif")
    sub.add_argument("--classes", help="one a point, names or numbers with commas; default: 0")
    sub.add_argument("--points", type=int, help="default: one a class, four of a single class")
    sub.add_argument("--frames", type=int, default=16, help="from a point to the next; default: 16")
    sub.add_argument("--how", default="spherical", help="between latents: spherical or linear")
    sub.add_argument("--loop", action="store_true", help="end where it began")
    sub.add_argument("--lock-z", action="store_true", help="move the class alone")
    sub.add_argument("--chunks", help="of a split z that move: numbers with commas, or each")
    sub.add_argument("--fps", type=int, default=12, help="frames a second; default: 12")
    _add_sampling(sub)

    sub = verb("app", "Serve a page and an HTTP API to play with a model.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("--compare", metavar="PATH", help="another one, to look at beside it")
    sub.add_argument(
        "--index",
        metavar="FILE",
        help="real images to find the nearest in: biggan evaluate --make-reference --with-images",
    )
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument("--host", default="127.0.0.1", help="to bind to; default: 127.0.0.1")
    sub.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any that is free")
    sub.add_argument("--devices", type=int, help="how many; default: one; on CPUs simulated")

    sub = verb("evaluate", "Score a model or a set of images.")
    sub.add_argument(
        "path", metavar="PATH", nargs="?", help="a run, bundle, export, folder of pictures or .npz"
    )
    sub.add_argument(
        "--reference",
        help="a .npz, a folder of pictures or a data set, NAME[:SPLIT]; data[:SPLIT] is the run's",
    )
    sub.add_argument(
        "--metrics",
        help="with commas: fid, sfid, ifid, is, kid, mind, prdc, copies, label_accuracy; of other"
        " networks than FID's fd, sfd, ifd and kd; fid50k says 50,000 images",
    )
    sub.add_argument("--num", type=int, help="images; default: 50000 of a model, else all")
    sub.add_argument(
        "--features",
        default="inception",
        help="the network: inception, inception_clean, inception_pytorch, effnetlite0,"
        " dinov2_vitl14 or dinov2_vitb14",
    )
    sub.add_argument("--weights", help="of the network; default: the package or the cache folder")
    sub.add_argument("--truncation", help="one, or FIRST:LAST:STEP for a sweep; default: none")
    sub.add_argument("--mode", help="what truncation means; default: the model's")
    sub.add_argument("--seed", type=int, default=0, help="of latents and labels")
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument("--data-dir", help="of the reference's data set")
    sub.add_argument("--devices", type=int, help="how many; default: all; on CPUs simulated")
    sub.add_argument(
        "--watch", action="store_true", help="score each checkpoint of a run until it is done"
    )
    sub.add_argument("--make-reference", metavar="OUT", help="only write the reference, a .npz")
    sub.add_argument("--resolution", type=int, help="of a data set for --make-reference")
    sub.add_argument(
        "--with-images",
        action="store_true",
        help="in that file also, small, for biggan app --index",
    )
    sub.add_argument("--out", help="the folder for pictures and tables; default: the run's")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = verb("prepare", "Write a data set cropped and resized once, for TFDS.")
    sub.add_argument(
        "--dataset", required=True, help="imagenet2012, another TFDS name, or folder:PATH"
    )
    sub.add_argument("--resolution", type=int, required=True, help="pixels of a side")
    sub.add_argument("--data-dir", help="TFDS data directory to write to; default: TFDS's own")
    sub.add_argument("--manual-dir", help="the folder with ImageNet's two tar files")
    sub.add_argument(
        "--resize",
        default="area",
        help="area (the paper's), bilinear, pil_bilinear (BigGAN-PyTorch's) or lanczos",
    )
    sub.add_argument("--splits", default="", help="with commas; default: all")
    sub.add_argument("--name", help="of the data set; default: biggan_ and the source's name")
    sub.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a picture that cannot be used; what is skipped is listed",
    )
    sub.add_argument("--processes", type=int, help="that work at once; default: one a core")
    sub.add_argument("--verify", action="store_true", help="read a finished data set, check it all")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = verb("import", "Turn a foreign model into a bundle.")
    sub.add_argument("source", metavar="SOURCE", help="a folder or checkpoint")
    sub.add_argument("out", metavar="OUT", help="the bundle to make")
    sub.add_argument(
        "--format",
        help="biggan-pytorch, huggingface, tfhub or compare-gan; inception for FID's network",
    )
    sub.add_argument("--name", help="of the model; default: the source's")
    sub.add_argument(
        "--config.model.KEY", metavar="VALUE", help="what the source does not say of its model"
    )

    sub = verb("export", "Write a model for other programs.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("out", metavar="OUT", help="the folder to make")
    sub.add_argument(
        "--format",
        required=True,
        help="bundle, stablehlo, saved-model, onnx, npz, huggingface or biggan-pytorch",
    )
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument(
        "--truncations",
        help="make BN statistics for these, with commas; stored: none; default: the model's own,"
        " else some up to no truncation",
    )
    sub.add_argument("--parameters", help="of stablehlo: inside the program (default) or apart")
    sub.add_argument("--licence", help="of the weights, for the card")
    sub.add_argument("--scores", help="for the card: a JSON file of names and numbers")

    sub = verb("inspect", "Say what is in a run folder or a bundle.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("--digest", action="store_true", help="SHA-256 over the whole state")
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest good one")
    sub.add_argument("--checkpoints", action="store_true", help="list them, with their manifests")
    sub.add_argument("--verify", action="store_true", help="with --checkpoints: read every byte")
    sub.add_argument("--json", action="store_true", help="for programs")
    return made


def _add_sampling(sub):
    sub.add_argument("--truncation", type=float, help="default: none")
    sub.add_argument(
        "--mode", help="what truncation means: threshold, hub, std or clamp; default: the model's"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument("--devices", type=int, help="default: all; on a CPU so many are simulated")
    sub.add_argument("--batch", type=int, help="images on their way at once; changes no byte")
    sub.add_argument("--json", action="store_true", help="for programs")


def overrides(
    rest: Sequence[str], made: argparse.ArgumentParser, verb: str
) -> list[tuple[str, str]]:
    """Turns what argparse did not know into (key, text) pairs of the config.

    Args:
      rest: of `parse_known_args`.
      made: of `parser`.
      verb: that was given.

    Raises:
      ConfigError: if one is no key, with what may have been meant.
    """
    pairs = []
    for arg in rest:
        key, equals, text = arg.removeprefix("--config.").partition("=")
        if verb in ("train", "plan", "import") and arg.startswith("--config."):
            if not equals:
                raise ConfigError(f"{arg}: write --config.{key}=VALUE.")
            pairs.append((key, text))
            continue
        sub: Any = made._subparsers._group_actions[0].choices[verb]  # type: ignore[union-attr,index]
        known = list(sub._option_string_actions)
        match = difflib.get_close_matches(arg.split("=")[0], known, n=1)
        hint = f"; did you mean {match[0]}?" if match else f"; see biggan {verb} --help."
        raise ConfigError(f"unknown argument {arg!r}{hint}")
    return pairs
