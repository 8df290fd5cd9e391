"""`biggan VERB ...`: one thin function a verb.

Exit codes: 0 done; 1 stopped because the disk did not take what had to be written (free space and
give the same command again); 2 bad usage or input, a check that found damage, or a plan that does
not fit; 3 stopped by the watchdog: training diverged or collapsed; 75 saved, or with nothing to
save, on SIGTERM or SIGINT: start again to go on. Of several processes: 69 another one is lost, 70
this one stood still.
"""

import argparse
import difflib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

_STARTED = time.perf_counter()  # Before anything heavy is imported.

from biggan_jax import __version__  # noqa: E402
from biggan_jax.config import ConfigError  # noqa: E402
from biggan_jax.files import CannotWrite  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    try:
        code = _run(argv)
    except BaseException as error:
        if "biggan_jax.parallel.distributed" in sys.modules:
            _leave_others(error)
        raise
    if "biggan_jax.parallel.distributed" in sys.modules:
        from biggan_jax.parallel import distributed

        distributed.leave(code)
    return code


def _leave_others(error):
    """Ends this process, one of several, as Python would end it, but without waiting for them."""
    from biggan_jax.parallel import distributed

    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = 1
    if distributed.store() is not None:
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        distributed.leave(code)


def _run(argv):
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    try:
        args.overrides = _overrides(rest, parser, args.verb)
        return args.run(args) or 0
    except ConfigError as e:
        print(f"biggan {args.verb}: {e}", file=sys.stderr)
        return 2
    except CannotWrite as e:
        print(f"biggan {args.verb}: stopped: {e}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="biggan",
        description="Train, sample, import and export BigGAN in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"biggan-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, run, text):
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    sub = verb("train", _train, "Train a model; the same command goes on where a run stopped.")
    sub.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT")
    sub.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config")
    sub.add_argument("--workdir", help="the run folder; needed unless --dry-run")
    sub.add_argument("--dry-run", action="store_true", help="print config and parameters, leave")

    sub = verb("plan", _plan, "Say whether a config fits a TPU slice, and how fast it can be.")
    sub.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT")
    sub.add_argument("--config.KEY", metavar="VALUE", help="override a key of the config")
    sub.add_argument("--slice", help="v3-512, v5e-16, tpu7x-64, ... or a topology such as v3:8x8")
    sub.add_argument("--slices", help="several, with commas between, to compare")
    sub.add_argument("--sweep", action="store_true", help="find the cheapest setting that fits")
    sub.add_argument("--quick", action="store_true", help="memory, FLOPs and collectives alone")
    sub.add_argument("--price-per-chip-hour", type=float, metavar="X", help="to tell the cost")
    sub.add_argument("--hbm-limit", type=float, metavar="GIB", help="of a device; default: all")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = verb("sample", _sample, "Write images: a sheet, a file each, or one .npz.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("--out", help="a sheet, .png, a class a column; default: samples.png")
    sub.add_argument("--images", metavar="FOLDER", help="a PNG an image, in a new folder")
    sub.add_argument("--npz", metavar="FILE", help="arr_0: uint8 [N, H, W, 3]; arr_1: labels")
    sub.add_argument("--num", type=int, default=8, help="images a class; default: 8")
    sub.add_argument(
        "--classes",
        help="names or numbers, with commas, or all; default: the first ten on a sheet, else all",
    )
    _add_sampling(sub)

    sub = verb("walk", _walk, "Write a walk through latents and classes: .png, .gif or .mp4.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
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

    sub = verb("app", _app, "Serve a page and an HTTP API to play with a model.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("--compare", metavar="PATH", help="another one, to look at beside it")
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument("--host", default="127.0.0.1", help="to bind to; default: 127.0.0.1")
    sub.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any that is free")
    sub.add_argument("--devices", type=int, help="how many; default: one; on CPUs simulated")

    sub = verb("evaluate", _evaluate, "Score a model or a set of images.")
    sub.add_argument(
        "path", metavar="PATH", nargs="?", help="a run, a bundle, a folder of pictures or a .npz"
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
        help="the network: inception, inception_clean, inception_pytorch or effnetlite0",
    )
    sub.add_argument("--weights", help="of the network; default: the package or the cache folder")
    sub.add_argument("--truncation", help="one, or FIRST:LAST:STEP for a sweep; default: none")
    sub.add_argument("--mode", help="what truncation means; default: the model's")
    sub.add_argument("--seed", type=int, default=0, help="of latents and labels")
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    sub.add_argument("--data-dir", help="of the reference's data set")
    sub.add_argument("--devices", type=int, help="how many; default: all; on CPUs simulated")
    sub.add_argument("--make-reference", metavar="OUT", help="only write the reference, a .npz")
    sub.add_argument("--resolution", type=int, help="of a data set for --make-reference")
    sub.add_argument("--out", help="the folder for pictures and tables; default: the run's")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = verb("prepare", _prepare, "Write a data set cropped and resized once, for TFDS.")
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

    sub = verb("import", _import, "Turn a foreign model into a bundle.")
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

    sub = verb("export", _export, "Write a model for other programs.")
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

    sub = verb("inspect", _inspect, "Say what is in a run folder or a bundle.")
    sub.add_argument("folder", metavar="PATH", help="a run folder or a bundle")
    sub.add_argument("--digest", action="store_true", help="SHA-256 over the whole state")
    sub.add_argument("--step", type=int, help="which checkpoint; default: the latest good one")
    sub.add_argument("--checkpoints", action="store_true", help="list them, with their manifests")
    sub.add_argument("--verify", action="store_true", help="with --checkpoints: read every byte")
    sub.add_argument("--json", action="store_true", help="for programs")
    return parser


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


def _overrides(rest, parser, verb):
    """Turns what argparse did not know into (key, text) pairs of the config."""
    pairs = []
    for arg in rest:
        key, equals, text = arg.removeprefix("--config.").partition("=")
        if verb in ("train", "plan", "import") and arg.startswith("--config."):
            if not equals:
                raise ConfigError(f"{arg}: write --config.{key}=VALUE.")
            pairs.append((key, text))
            continue
        sub = parser._subparsers._group_actions[0].choices[verb]
        known = list(sub._option_string_actions)
        match = difflib.get_close_matches(arg.split("=")[0], known, n=1)
        hint = f"; did you mean {match[0]}?" if match else f"; see biggan {verb} --help."
        raise ConfigError(f"unknown argument {arg!r}{hint}")
    return pairs


def _train(args):
    from biggan_jax import config as config_lib

    config = config_lib.load(args.config, args.overrides)
    if config.preset:
        from biggan_jax.plan import preset

        config = preset.apply(config, lambda line: print(line, file=sys.stderr, flush=True))
    if args.dry_run:
        from biggan_jax.train import overview

        print(overview.dry_run(config))
        return 0
    if not args.workdir:
        raise ConfigError("--workdir: say into which folder the run is to be written.")
    # Until the loop listens itself there is nothing to save, and importing takes seconds.
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: os._exit(75)) for number in signals]
    try:
        from biggan_jax.train import loop

        loop.train(config, args.workdir, _STARTED)
    except loop.Diverged as e:
        print(f"biggan train: stopped: {e}", file=sys.stderr)
        return 3
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    return 0


def _plan(args):
    from biggan_jax import config as config_lib
    from biggan_jax.parallel import slices
    from biggan_jax.plan import search, text

    if (args.slice is None) == (args.slices is None):
        raise ConfigError("--slice: name one, or several with --slices=A,B,C.")
    for name in ("price_per_chip_hour", "hbm_limit"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')}={value}: must be a number above 0.")
    config = config_lib.load(args.config, args.overrides)
    answer = search.compare(
        config,
        [slices.find(name) for name in (args.slice or args.slices).split(",")],
        args.sweep,
        price=args.price_per_chip_hour,
        limit=None if args.hbm_limit is None else args.hbm_limit * slices.GIB,
        quick=args.quick,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(answer) if args.json else text.text(answer))
    # Only what was asked for must fit; --sweep asks for anything that does.
    if args.sweep:
        return 0 if answer["cheapest"] else 2
    return 0 if all(row["fits"] for row in answer["plans"]) else 2


def _sample(args):
    from biggan_jax import show

    out = args.out or (None if args.images or args.npz else "samples.png")
    request = show.Request(
        args.classes,
        args.num,
        args.seed,
        args.truncation,
        args.mode,
        args.batch,
        out,
        args.images,
        args.npz,
    )
    request.check()
    facts = show.sample(_model(args), request)
    if args.json:
        print(json.dumps(facts))
        return
    print(f"samples are in {', '.join(facts['outputs'])}")
    rate = facts["images_per_second"]
    print(
        f"{facts['images']:,} images in {facts['seconds']:.1f} s on {facts['devices']} device(s)"
        + (f", {rate:.3g} images/s after the first" if rate else "")
        + f"; BN statistics: {facts['statistics_seconds']:.1f} s"
    )


def _walk(args):
    from biggan_jax import show

    request = show.Walk(
        args.out,
        args.classes,
        args.points,
        args.frames,
        args.how,
        args.loop,
        args.lock_z,
        args.chunks,
        args.seed,
        args.truncation,
        args.mode,
        args.fps,
        args.batch,
    )
    request.check()
    facts = show.walk_to(_model(args), request)
    if args.json:
        print(json.dumps(facts))
    else:
        print(f"a walk of {facts['frames']} frames is in {args.out}")


def _app(args):
    from biggan_jax.app import server

    if args.devices is not None:
        from biggan_jax.parallel import mesh

        if args.devices < 1:
            raise ConfigError(f"--devices={args.devices}: must be at least 1.")
        mesh.request_cpu_devices(args.devices)
    server.serve(args.folder, args.host, args.port, args.step, args.compare, args.devices or 1)


def _model(args):
    from biggan_jax import api
    from biggan_jax.parallel import mesh

    if args.devices is not None:
        if args.devices < 1:
            raise ConfigError(f"--devices={args.devices}: must be at least 1.")
        mesh.request_cpu_devices(args.devices)
    model = api.load(args.folder, args.step, args.devices or 0)
    model.progress = True
    return model


def _evaluate(args):
    from biggan_jax.evaluate import evaluator, sweep

    if not args.reference:
        raise ConfigError("--reference: say what the images are compared with.")
    if args.make_reference:
        about = evaluator.make_reference(
            args.make_reference,
            args.reference,
            args.data_dir,
            args.resolution,
            args.path,
            args.features,
            args.weights,
            args.devices,
        )
        print(json.dumps(about) if args.json else f"the reference is in {args.make_reference}")
        return
    if not args.path:
        raise ConfigError("PATH: say what is to be scored.")
    truncations = sweep.parse(args.truncation)
    folder = sweep.folder(args.path, args.out) if len(truncations) > 1 else None
    sheets = folder
    if sheets is None and "copies" in (args.metrics or ""):
        sheets = sweep.folder(args.path, args.out, "sheet of nearest neighbours")
    results = evaluator.evaluate(
        evaluator.Request(
            path=args.path,
            reference=args.reference,
            metrics=args.metrics,
            num=args.num,
            features=args.features,
            weights=args.weights,
            truncations=truncations,
            mode=args.mode,
            seed=args.seed,
            step=args.step,
            data_dir=args.data_dir,
            devices=args.devices,
            out=sheets,
        )
    )
    if folder is not None:
        paths = sweep.write(folder, results)
        print(f"the sweep is in {', '.join(paths)}", file=sys.stderr)
    shown = results if folder is not None else results[0]
    print(json.dumps(shown) if args.json else sweep.table(results))


def _prepare(args):
    from biggan_jax.data import prepare

    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes={args.processes}: must be at least 1.")
    request = prepare.Request(
        args.dataset,
        args.resolution,
        args.data_dir,
        args.manual_dir,
        args.resize,
        tuple(s for s in args.splits.split(",") if s),
        args.name,
        args.on_error == "skip",
        args.processes,
    )
    if args.verify:
        from biggan_jax.data import verify

        facts = verify.verify(str(prepare.builder_for(request, None).data_path), args.processes)
        print(json.dumps(facts) if args.json else verify.text(facts))
        return 2 if facts["problems"] else 0
    facts = prepare.prepare(request, lambda line: print(line, file=sys.stderr))
    print(json.dumps(facts) if args.json else prepare.text(facts))
    return 0


def _import(args):
    from biggan_jax import files
    from biggan_jax.interop import bundle, formats

    if args.format == "inception":
        from biggan_jax.evaluate import extractors

        if args.name or args.overrides:
            raise ConfigError("--format=inception: is no model; --name and --config do not apply.")
        for note in extractors.import_inception(args.source, args.out):
            print(f"note: {note}")
        print(f"the network of FID is in {args.out}")
        return
    files.check_new_folder(args.out, "OUT")
    found = formats.read(args.source, args.format, args.overrides)
    found.name = args.name or found.name
    bundle.write(found, args.out)
    for note in found.source.get("notes", ()):
        print(f"note: {note}")
    print(f"the bundle of {found.name} is in {args.out}")


def _export(args):
    from biggan_jax import api

    options = {
        key: getattr(args, key) for key in ("truncations", "parameters", "licence", "scores")
    }
    for note in api.export(args.folder, args.out, args.format, args.step, **options):
        print(f"note: {note}")
    print(f"{args.folder} is in {args.out}, format {args.format}")


def _inspect(args):
    from biggan_jax.interop import bundle
    from biggan_jax.train import listing, overview

    if args.verify and not args.checkpoints:
        raise ConfigError("--verify: goes with --checkpoints.")
    if args.checkpoints:
        rows = listing.checkpoints(args.folder, args.verify)
        print(json.dumps(rows) if args.json else listing.text(rows))
        return 2 if any(row["state"] == "damaged" for row in rows) else 0
    if bundle.is_bundle(args.folder):
        if args.step is not None:
            raise ConfigError(f"--step={args.step}: a bundle has no checkpoints.")
        facts = overview.inspect_bundle(args.folder, digest=args.digest)
        print(json.dumps(facts) if args.json else overview.bundle_text(facts))
        return 0
    facts = overview.inspect(args.folder, digest=args.digest, step=args.step)
    print(json.dumps(facts) if args.json else overview.text(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
