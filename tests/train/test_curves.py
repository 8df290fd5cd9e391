import io
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from biggan_jax.train import curves

NAMES = ["G/linear", "G/block0/conv1", "D/embed"]
ROLLBACK = {"step": 40, "rollback": 1, "from": 40, "to": 20, "rule": "d_flat"}


def metrics(steps):
    return [
        {"step": s, "d_loss": 1.0, "g_loss": 0.5, "d_real": 1.0, "d_fake": -1.0}
        | {"d_grad_norm": 3.0 + s, "g_grad_norm": 0.1}
        for s in steps
    ]


def spectra(steps, names=NAMES, value=lambda step, i: 1.0 + i):
    return [
        {"step": s, "diversity": 0.5}
        | {"sigma": {name: [value(s, i), 1.0, 0.0] for i, name in enumerate(names)}}
        for s in steps
    ]


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"), int)


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_draws_what_a_run_folder_holds(tmp_path):
    write(tmp_path / "metrics.jsonl", [*metrics((10, 20, 30)), ROLLBACK, *metrics((30, 40))])
    write(tmp_path / "spectra.jsonl", spectra((10, 20, 30)))
    with open(tmp_path / "spectra.jsonl", "a") as f:
        f.write('{"step": 40, "div')  # A kill.
    paths = curves.draw(str(tmp_path))
    assert paths == [str(tmp_path / "curves.png"), str(tmp_path / "spectra.png")]
    for path in paths:
        assert pixels(pathlib.Path(path).read_bytes()).std() > 5
    assert len(list(tmp_path.iterdir())) == 4


def test_draws_what_is_there_and_nothing_without(tmp_path):
    assert curves.draw(str(tmp_path)) == [] and list(tmp_path.iterdir()) == []
    write(tmp_path / "metrics.jsonl", metrics((10,)))
    assert curves.draw(str(tmp_path)) == [str(tmp_path / "curves.png")]
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path / "spectra.jsonl", spectra((100,)))
    assert len(curves.draw(str(tmp_path))) == 2


def columns_of(png, color):
    """Whether each column of pixels holds a line of this colour through half of a panel."""
    near = np.abs(pixels(png) - color).sum(-1) < 90
    return np.flatnonzero(near.sum(0) > 0.3 * len(near))


def test_rollbacks_are_lines_where_they_happened():
    steps = range(0, 101, 10)
    red = (255, 0, 0)
    assert len(columns_of(curves.curves_png(metrics(steps), spectra(steps)), red)) == 0
    # From the last step: the line stands at the right edge of what is drawn.
    right = {**ROLLBACK, "from": 100, "to": 100}
    left = {**ROLLBACK, "from": 0, "to": 0}
    at = [columns_of(curves.curves_png(metrics(steps), [], [r]), red) for r in (left, right)]
    assert all(len(x) in (1, 2, 3) for x in at)
    assert at[1].mean() - at[0].mean() > 700  # Of 1,100 pixels, less ticks and legend.


def brightness(png, columns, rows):
    """Mean brightness in the middle of each cell of a heat map: [rows, columns]."""
    image = pixels(png).sum(-1)
    # The map is framed in black; what is around it is white but for text.
    dark = image < 60
    left, right = np.flatnonzero(dark.sum(0) > 0.5 * len(image))[[0, -1]]
    framed = np.flatnonzero(dark[:, left])
    top, bottom = framed[0], framed[-1]
    # The last dark column is the frame of the colour bar; the map ends at its own.
    right = max(np.flatnonzero(dark[top])[np.diff(np.flatnonzero(dark[top]), append=1e9) > 1][0], 1)
    ys = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    xs = left + (np.arange(columns) + 0.5) * (right - left) / columns
    return image[np.ix_(ys.astype(int), xs.astype(int))]


def test_the_heat_map_has_a_row_a_weight_and_a_column_a_look():
    names = [f"G/block{i}/conv" for i in range(12)] + [f"D/block{i}/conv" for i in range(8)]
    rng = np.random.default_rng(0)
    table = np.exp(rng.permutation(20 * 9).reshape(20, 9) / 60)
    looks = spectra(range(0, 900, 100), names, lambda step, i: table[i, step // 100])
    got = brightness(curves.spectra_png(looks), 9, 20)
    # The colour map goes from black to bright, so the orders are the same.
    ranks = lambda x: np.argsort(np.argsort(x, axis=None))  # noqa: E731
    assert np.corrcoef(ranks(got), ranks(table))[0, 1] > 0.99


def test_a_step_that_came_again_shows_its_later_value():
    first = spectra((100, 200, 300), value=lambda step, i: 50.0)
    again = spectra((200, 300), value=lambda step, i: 1.0)
    want = curves.spectra_png([*first[:1], *again])
    np.testing.assert_array_equal(pixels(curves.spectra_png([*first, *again])), pixels(want))


@pytest.mark.parametrize("count", [1, 2, 5000])
@pytest.mark.parametrize("weights", [1, 60])
def test_few_and_thousands_of_looks(count, weights):
    names = [f"{'GD'[i % 2]}/block{i}/conv" for i in range(weights)]
    looks = spectra(range(100, 100 * count + 1, 100), names)
    image = pixels(curves.spectra_png(looks, [ROLLBACK]))
    assert image.shape[0] < 100 + 60 * weights and image.shape[1] == 1100


def test_numbers_that_are_lost_are_marked_and_stop_no_picture():
    lines = metrics(range(10, 200, 10))
    plain = pixels(curves.curves_png(lines, []))
    lines[5] |= {"d_loss": None, "d_real": math.nan}
    marked = pixels(curves.curves_png(lines, []))
    red = lambda x: ((x[..., 0] > 200) & (x[..., 1] < 60) & (x[..., 2] < 60)).sum()  # noqa: E731
    assert red(plain) == 0 and red(marked) > 5
    lost = spectra((100, 200))
    lost[1]["sigma"]["G/linear"] = [None, None, None]
    lost[1]["sigma"]["D/embed"] = [0.0, 0.0, 0.0]
    lost[0]["diversity"] = None
    for png in (curves.spectra_png(lost), curves.curves_png(lines, lost)):
        assert pixels(png).std() > 5


def test_nothing_but_drawing_imports_matplotlib(tmp_path):
    code = (
        "import sys, biggan_jax.train.curves as c; before = 'matplotlib' in sys.modules;"
        f"c.draw({str(tmp_path)!r}); sys.exit(before or 'matplotlib.pyplot' in sys.modules)"
    )
    write(tmp_path / "metrics.jsonl", metrics((10, 20)))
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
