"""Scores a run's checkpoints while it trains, in a process of its own.

Few images and one seed make a score that is good for following one run and for nothing else, so it
has a name of its own: `fid5k_watch/inception`, `fd5k_watch/effnetlite0`.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biggan_jax import api, files
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import classifier, evaluator, extractors, images, metrics
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.train import checkpoint, compilation, report, runs, watch_scores

NUM = 5000
PNG = "watch_scores.png"
EVENTS = "watch"  # The folder of TensorBoard's events in the run folder.
PAUSE = 10.0  # Seconds between two looks at the run folder.


def name_of(reported: str, num: int, extractor: Extractor) -> str:
    """Returns the watch score's name of a reported one: of fid fid5k_watch/inception."""
    stem, where = reported, extractor.name
    if reported.startswith("label_accuracy"):
        where = classifier.NAME
        stem = reported.replace(f"_{classifier.NAME}", "", 1)
    elif extractor.is_fid:
        stem = reported.removesuffix(extractor.name.removeprefix("inception"))
    else:
        stem = reported.removesuffix(f"_{extractor.name}")
    count = f"{num // 1000}k" if num % 1000 == 0 else str(num)
    gap = "_" if stem[-1].isdigit() else ""
    return f"{stem}{gap}{count}{watch_scores.MARK}{where}"


def watch(
    request: evaluator.Request,
    say: Callable[[str], None],
    pause: float = PAUSE,
) -> list[dict[str, Any]]:
    """Scores each checkpoint of a run that has no score yet, until the run is done.

    Writes `watch_scores.jsonl`, `watch_scores.png` and TensorBoard events into the run folder. With
    `best_metric` set to one of the names, training keeps the best of those that were scored while
    they were there.

    Args:
      request: `path` is the run folder; `step`, `truncations` and `out` do not apply.
      say: called with a line for each score.
      pause: seconds between two looks.

    Returns:
      The lines that were written.

    Raises:
      ConfigError: if something asked for cannot be, or a checkpoint that is there cannot be read.
    """
    run = request.path
    if not images.is_run(run):
        raise ConfigError(f"--watch: {run!r} is no run folder with checkpoints.")
    evaluator.want(request.devices)
    extractor = extractors.load(request.features, request.weights)
    kinds, named = metrics.parse(request.metrics or "fd", extractor)
    num = request.num or named or NUM
    engine = evaluator.open_engine(extractor, request.devices)
    config = runs.read_config(run)
    compilation.use_cache(config.compilation_cache, run)  # Each checkpoint is a model of its own.
    size = config.model.resolution
    real = evaluator.open_reference(
        request.reference, request.data_dir, size, engine, config, whole="ifd" in kinds
    )
    with contextlib.closing(report.summary_writer(os.path.join(run, EVENTS))) as events:
        return _follow(request, config, kinds, num, engine, real, events, say, pause)


def _follow(request, config, kinds, num, engine, real, events, say, pause):
    run, extractor = request.path, engine.extractor
    written: list[dict[str, Any]] = []
    while True:
        # Asked before the look: what is saved till then is seen.
        done = runs.phase(run) in ("done", "stopped")
        for step, content in _without_score(run, config, num, extractor, kinds).items():
            try:
                model = api.load(run, step, engine.mesh.size)
            except ConfigError:
                if _there(run, step):
                    raise
                say(f"step {step:,}: the run has removed the checkpoint; not scored")
                continue
            shown = images.Generated(model, num, None, None, request.seed)
            metrics.check_images(kinds, shown)
            metrics.check_reference(kinds, real, shown.labels)
            _, result, _ = evaluator.score(kinds, shown, real, engine)
            values = {name_of(k, num, extractor): v for k, v in result["metrics"].items()}
            line = {
                "step": step,
                "rollbacks": watch_scores.rollbacks(content),
                "scores": values,
                "protocol": result["protocol"],
            }
            watch_scores.append(run, line)
            written.append(line)
            files.write_whole(os.path.join(run, PNG), draw(watch_scores.read(run)))
            events.write_scalars(step, values)
            events.flush()
            say(f"step {step:,}: " + ", ".join(f"{k} {v:.6g}" for k, v in values.items()))
        if done:
            return written
        time.sleep(pause)


def draw(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a PNG of scores over steps, a curve a name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for line in lines for name in line["scores"]))
    figure = Figure(figsize=(9, 2.6 * len(names) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        points = {x["step"]: x["scores"][name] for x in lines if name in x["scores"]}
        steps = sorted(points)
        axis.plot(steps, [points[step] for step in steps], "o-", markersize=3)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def _without_score(run, config, num, extractor, kinds):
    """Manifests, by step, of the checkpoints that are to stay and lack a score of these kinds."""
    with checkpoint.Checkpoints(os.path.join(run, runs.CHECKPOINTS), keep=None) as saved:
        manifests = saved.manifests()
    # Those half-way, or on a signal, are gone soon.
    stays = lambda step: step % config.checkpoint_every == 0 or step == config.num_steps  # noqa: E731
    manifests = {step: content for step, content in manifests.items() if stays(step)}
    known = watch_scores.of_checkpoints(run, manifests)
    first = {"prdc": "precision_k3"}
    wanted = {
        name_of(metrics.name_of(first.get(kind, kind), extractor), num, extractor) for kind in kinds
    }
    return {step: manifests[step] for step in manifests if not wanted <= known[step].keys()}


def _there(run, step):
    return os.path.isdir(os.path.join(run, runs.CHECKPOINTS, str(step)))
