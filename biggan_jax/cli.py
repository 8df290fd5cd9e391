"""`biggan VERB ...`: one thin function a verb.

Exit codes: 0 done; 1 stopped because the disk did not take what had to be written (free space and
give the same command again); 2 bad usage or input, a check that found damage, or a plan that does
not fit; 3 stopped by the watchdog: training diverged or collapsed; 75 saved, or with nothing to
save, on SIGTERM or SIGINT: start again to go on. Of several processes: 69 another one is lost, 70
this one stood still.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

_STARTED = time.perf_counter()  # Before anything heavy is imported.

from biggan_jax import arguments  # noqa: E402
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
    parser = arguments.parser(_VERBS)
    args, rest = parser.parse_known_args(argv)
    try:
        args.overrides = arguments.overrides(rest, parser, args.verb)
        return args.run(args) or 0
    except ConfigError as e:
        print(f"biggan {args.verb}: {e}", file=sys.stderr)
        return 2
    except CannotWrite as e:
        print(f"biggan {args.verb}: stopped: {e}", file=sys.stderr)
        return 1


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

    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    for name in ("price_per_chip_hour", "hbm_limit"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')}={value}: must be a number above 0.")
    if args.of_run is not None:
        return _plan_of_run(args, say)
    if args.config is None:
        raise ConfigError("--config: name a config, or a run with --run.")
    asked = [names for names in (args.where, args.slice, args.slices) if names is not None]
    if len(asked) != 1:
        raise ConfigError("--slice: name one, or several with --slices=A,B,C.")
    config = config_lib.load(args.config, args.overrides)
    if config.preset:
        raise ConfigError(
            f"preset={config.preset!r}: biggan plan tries settings itself; leave it out."
        )
    answer = search.compare(
        config,
        [slices.find(name) for name in asked[0].split(",")],
        args.sweep,
        price=args.price_per_chip_hour,
        limit=None if args.hbm_limit is None else args.hbm_limit * slices.GIB,
        quick=args.quick,
        say=say,
    )
    print(json.dumps(answer) if args.json else text.text(answer))
    # Only what was asked for must fit; --sweep asks for anything that does.
    if args.sweep:
        return 0 if answer["cheapest"] else 2
    return 0 if all(row["fits"] for row in answer["plans"]) else 2


def _plan_of_run(args, say):
    from biggan_jax import files
    from biggan_jax.plan import measured
    from biggan_jax.train import runs, step_time

    others = ["config", "overrides", "where", "slice", "slices", "sweep", "quick", "hbm_limit"]
    called = {"where": "SLICE", "overrides": "--config.KEY"}
    for name in others:
        if getattr(args, name):
            option = called.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(
                f"--run={args.of_run}: plans the run's own config for what it ran on; leave out"
                f" {option}."
            )
    config = runs.read_config(args.of_run)
    seen = step_time.read(args.of_run, config)
    price = args.price_per_chip_hour
    answer = measured.compare(args.of_run, config, seen, price=price, say=say)
    print(json.dumps(answer) if args.json else measured.as_text(answer))
    path = os.path.join(args.of_run, measured.FILE)
    try:
        files.write_whole(path, json.dumps(answer, indent=2) + "\n")
    except OSError as e:  # A folder that is somebody else's, say.
        print(f"biggan plan: {path} was not written: {e.strerror}", file=sys.stderr)
    return 0


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
    server.serve(
        args.folder,
        args.host,
        args.port,
        args.step,
        args.compare,
        args.devices or 1,
        index=args.index,
    )


def _model(args):
    from biggan_jax import api
    from biggan_jax.parallel import mesh

    if args.devices is not None:
        if args.devices < 1:
            raise ConfigError(f"--devices={args.devices}: must be at least 1.")
        mesh.request_cpu_devices(args.devices)
    model = api.open_any(args.folder, args.step, args.devices or 0)
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
            args.with_images,
        )
        print(json.dumps(about) if args.json else f"the reference is in {args.make_reference}")
        return
    if args.with_images:
        raise ConfigError("--with-images: goes with --make-reference.")
    if not args.path:
        raise ConfigError("PATH: say what is to be scored.")
    if args.watch:
        _evaluate_watch(args)
        return
    truncations = sweep.parse(args.truncation)
    folder = sweep.folder(args.path, args.out) if len(truncations) > 1 else None
    sheets = folder
    if sheets is None and "copies" in (args.metrics or ""):
        sheets = sweep.folder(args.path, args.out, "sheet of nearest neighbours")
    request = _request(args, truncations=truncations, mode=args.mode, step=args.step, out=sheets)
    results = evaluator.evaluate(request)
    if folder is not None:
        paths = sweep.write(folder, results)
        print(f"the sweep is in {', '.join(paths)}", file=sys.stderr)
    shown = results if folder is not None else results[0]
    print(json.dumps(shown) if args.json else sweep.table(results))


def _evaluate_watch(args):
    from biggan_jax.evaluate import watch

    for name in ("truncation", "mode", "step", "out"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name}: does not apply to --watch.")
    say = lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True)  # noqa: E731
    lines = watch.watch(_request(args), say)
    if args.json:
        print(json.dumps(lines))


def _request(args, **more):
    from biggan_jax.evaluate import evaluator

    return evaluator.Request(
        path=args.path,
        reference=args.reference,
        metrics=args.metrics,
        num=args.num,
        features=args.features,
        weights=args.weights,
        seed=args.seed,
        data_dir=args.data_dir,
        devices=args.devices,
        **more,
    )


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


_VERBS = {
    "train": _train,
    "plan": _plan,
    "sample": _sample,
    "walk": _walk,
    "app": _app,
    "evaluate": _evaluate,
    "prepare": _prepare,
    "import": _import,
    "export": _export,
    "inspect": _inspect,
}


if __name__ == "__main__":
    sys.exit(main())
