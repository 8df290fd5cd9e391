import concurrent.futures
import json

import numpy as np
import pytest

pytest.importorskip("pydantic")

from biggan_jax.app import curve, recipes, timelapse
from biggan_jax.app.recipes import Images, Page, Walk
from biggan_jax.app.studio import Studio
from biggan_jax.config import ConfigError


@pytest.fixture(scope="module")
def studio(folder, other_folder):
    made = Studio(folder, compare=other_folder)
    yield made
    made.close()


def test_images_are_those_of_the_model(studio):
    shown = studio.images(Images(classes="emu,0", num=5, seed=3, truncation=0.7))
    want = studio.model.sample([2, 0, 2, 0, 2], truncation=0.7, seed=3)
    np.testing.assert_array_equal(shown.images, want)
    assert shown.labels == [2, 0, 2, 0, 2] and shown.numbers == [0, 1, 2, 3, 4]
    assert shown.columns == 2 and shown.column_labels == ["emu", "cat"]
    other = studio.images(Images(classes="emu,0", num=5, seed=3, checkpoint="other"))
    assert not np.array_equal(other.images, want)


def test_the_same_bytes_in_company_as_alone(studio):
    ask = [Images(classes="1", num=1 + i % 3, seed=100 + i) for i in range(24)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = list(pool.map(studio.images, ask))
    for recipe, shown in zip(ask, found, strict=True):
        want = studio.model.sample([1] * recipe.num, seed=recipe.seed)
        np.testing.assert_array_equal(shown.images, want)


def test_a_mix_and_one_latent_a_row(studio):
    model = studio.model
    z = model.latents(2, seed=1)
    shown = studio.images(Images(classes="cat,emu", weights="1,3", num=2, seed=1))
    want = model.render(z, np.tile(model.mix({"cat": 1, "emu": 3}), (2, 1)))
    np.testing.assert_array_equal(shown.images, want)
    shown = studio.images(Images(num=6, seed=1, lock_z=True))
    want = model.render(np.repeat(z, 3, axis=0), np.tile([0, 1, 2], 2))
    np.testing.assert_array_equal(shown.images, want)


def test_only_some_chunks_vary(studio):
    model = studio.model
    z = model.latents(4, seed=2)
    z = z.reshape(4, model.slots, -1).copy()
    z[:, 1:] = z[:1, 1:]
    want = model.render(z.reshape(4, -1), [0] * 4)
    shown = studio.images(Images(classes="0", num=4, seed=2, chunks="0"))
    np.testing.assert_array_equal(shown.images, want)


def test_sorted_by_the_discriminator(studio):
    plain = studio.images(Images(num=20, seed=5))
    shown = studio.images(Images(num=20, seed=5, sort=True))
    logits = studio.model.discriminate(plain.images, plain.labels)
    np.testing.assert_allclose(shown.logits, np.sort(logits)[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shown.images, plain.images[shown.numbers])
    assert f"{shown.logits[0]:+.2f}" in shown.captions[0]


def test_a_walk_is_the_models(studio):
    frames = studio.walk(Walk(classes="0,2", frames=3, seed=4, loop=False, truncation=0.7))
    z = studio.model.latents(2, 0.7, 4)
    want = studio.model.walk([(z[0], 0), (z[1], 2)], 3, 0.7)
    np.testing.assert_array_equal(frames, want)


def test_equal_recipes_are_made_once_and_old_ones_are_let_go(studio, monkeypatch):
    made = []
    plain = Studio._images
    monkeypatch.setattr(Studio, "_images", lambda s, r: made.append(r) or plain(s, r))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(studio.images, [Images(seed=77)] * 8))
    assert len(made) == 1
    monkeypatch.setattr("biggan_jax.app.studio._KEPT_BYTES", 100_000)
    for seed in range(60):
        studio.images(Images(num=5, seed=1000 + seed))
    assert sum(f.result().images.nbytes for f in studio._results.values()) <= 100_000


WRONG = {
    "class": ({"classes": "mouse"}, "classes: 'mouse' is no class: there are 0 to 2."),
    "too many classes": ({"classes": "0," * 70}, "classes: must be at most 64."),
    "hub": ({"truncation": 1.5, "mode": "hub"}, "truncation=1.5: must be at most 1 in mode hub."),
    "chunks": ({"chunks": "9"}, "chunks: 9 is none of the chunks 0 to"),
    "chunk words": ({"chunks": "a"}, "chunks=a: must be numbers"),
    "weights": ({"weights": "1"}, "weights=1: must be 3 numbers from 0"),
    "weights nan": ({"weights": "1,nan,1"}, "weights=1,nan,1: must be 3 numbers"),
    "no weight": ({"weights": "0,0,0"}, "weights=0,0,0: one must be above 0."),
    "sorted mix": ({"weights": "1,1,1", "sort": True}, "sort: the discriminator judges single"),
    "checkpoint": ({"checkpoint": "../x"}, "checkpoint=../x: must be one of other."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_in_a_sentence(studio, name):
    fields, start = WRONG[name]
    with pytest.raises(ConfigError) as e:
        studio.images(Images(**fields))
    assert str(e.value).startswith(start)


def test_walks_that_are_too_long_or_do_not_move(studio):
    with pytest.raises(ConfigError, match="16 points make 960 frames; must be at most 240"):
        studio.walk(Walk(points=16, frames=60))
    with pytest.raises(ConfigError, match="lock_z: needs two classes or more"):
        studio.walk(Walk(classes="0", lock_z=True))


FIELDS = {
    "seed=-1": "seed=-1: must be greater than or equal to 0.",
    "truncation=nan": "truncation=nan: must be a finite number.",
    "truncation=0": "truncation=0: must be greater than or equal to 0.01.",
    "num=1000000000": "num=1000000000: must be less than or equal to 64.",
    "mode=other": "mode=other: must be 'threshold', 'hub', 'std' or 'clamp'.",
    "colour=red": "colour: there is no such field; see /api/model.",
}


@pytest.mark.parametrize("text", FIELDS)
def test_fields_that_cannot_be_are_said_in_a_sentence(text):
    name, _, value = text.partition("=")
    with pytest.raises(ConfigError) as e:
        recipes.read(Page, {name: value})
    assert str(e.value) == FIELDS[text]


def test_a_link_says_the_whole_state():
    state = Page(classes="cat,dog <b>", seed=3, truncation=0.5, lock_z=True, tab="walk", fps=3)
    query = recipes.query(state)
    assert query.startswith("classes=cat%2Cdog+%3Cb%3E&seed=3&truncation=0.5&lock_z=true")
    import urllib.parse

    assert recipes.read(Page, dict(urllib.parse.parse_qsl(query))) == state
    assert recipes.query(Page()) == ""


def test_the_film_of_a_training(folder, tmp_path):
    assert timelapse.steps(folder) == [0, 5, 10]
    frames = timelapse.frames(folder)
    assert frames.shape == (3, 40, 60, 3) and frames[:, 0, 0, 0].tolist() == [0, 128, 255]
    with pytest.raises(ConfigError, match="step=7: must be one of 0, 5, 10"):
        timelapse.sheet(folder, 7)
    with pytest.raises(ConfigError, match="there is no time-lapse"):
        timelapse.frames(str(tmp_path))


def test_the_curve_of_scores(folder, tmp_path):
    found = curve.at(curve.read(folder), None, "threshold")
    assert [p.truncation for p in found["fid"]] == [0.5, 1.0]
    assert curve.estimate(found["fid"], 0.75) == 25.0
    assert curve.estimate(found["fid"], 2.0) is None
    assert curve.text(found, 0.75) == ("fid from 30 at truncation 0.5 to 20 at 1, about 25 here")
    assert curve.draw(found, 0.75).startswith(b"\x89PNG")
    lines = ["no json", "{}", json.dumps({"step": 1, "protocol": {"images": []}})]
    (tmp_path / "metric-fid.jsonl").write_text("\n".join(lines))
    assert curve.read(str(tmp_path)) == []
