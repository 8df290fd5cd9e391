"""The code in the documentation runs, on a tiny model that stands where the text has the demo's."""

import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from biggan_jax.interop import bundle as bundle_lib
from tests.test_api import make_bundle

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (DOCS / "api.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    bundle = make_bundle(num_classes=10)
    bundle.standing_images = 32
    bundle.class_names = tuple(str(i) for i in range(10))
    bundle_lib.write(bundle, str(folder / "runs" / "digits"))
    return folder


def check_sheet(found, place):
    first, second = found["images"][:2]
    with Image.open(place / "sheet.png") as picture:
        assert picture.size[0] > 100
    assert not np.array_equal(first, second)


def check_between(found, place):
    steps = np.abs(np.diff(found["images"], axis=0)).mean((1, 2, 3))
    assert len(steps) == 4 and (steps > 0).all()
    assert (place / "between.png").stat().st_size > 100


def check_walk(found, place):
    with Image.open(place / "walk.gif") as gif:
        assert gif.n_frames == 32


def check_best(found, place):
    scores = found["model"].discriminate(found["images"], found["labels"])
    best = found["model"].discriminate(found["best"], found["labels"][:5])
    np.testing.assert_allclose(best, np.sort(scores)[::-1][:5], rtol=1e-5, atol=1e-6)


def check_npz(found, place):
    with np.load(place / "samples.npz") as saved:
        want = found["model"].sample(found["labels"], seed=4)
        np.testing.assert_array_equal(saved["arr_0"], want)
        np.testing.assert_array_equal(saved["arr_1"], found["labels"])


CHECKS = [check_sheet, check_between, check_walk, check_best, check_npz]


@pytest.mark.parametrize("number", range(len(CHECKS)))
def test_the_five_examples_of_api_md(number, place, monkeypatch):
    assert len(BLOCKS) == len(CHECKS)
    monkeypatch.chdir(place)
    found = {}
    exec(compile(BLOCKS[number], f"api.md, example {number + 1}", "exec"), found)
    CHECKS[number](found, place)


def test_the_notebook_runs_top_to_bottom(place, monkeypatch):
    monkeypatch.setitem(os.environ, "BIGGAN_MODEL", str(place / "runs" / "digits"))
    notebook = json.loads((DOCS / "notebooks" / "explore.ipynb").read_text())
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(sources) == 7
    assert not any(c.get("outputs") for c in notebook["cells"])  # None is kept in the repository.
    found = {}
    for i, source in enumerate(sources):
        exec(compile(source, f"explore.ipynb, code cell {i + 1}", "exec"), found)
    assert found["frames"].shape == (32, 16, 16, 3)
    assert isinstance(found["picture"], Image.Image)
