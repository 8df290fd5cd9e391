"""The app with an index of real images: who is nearest, as a sheet and as numbers."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydantic")

from biggan_jax.app import forms
from biggan_jax.app.recipes import Images
from biggan_jax.app.studio import Studio
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import evaluator, extractors
from tests.evaluate.test_evaluator import extractor

ASK = Images(classes="emu,0", num=6, seed=3)


@pytest.fixture(scope="module")
def studio(folder, tmp_path_factory):
    """Its index holds the model's own images of other seeds, and one of `ASK`'s."""
    place = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(extractors, "load", lambda name, weights=None: extractor(name))
        patch.setattr(extractors, "NAMES", ("means",))
        plain = Studio(folder)
        real = plain.images(Images(num=30, seed=99)).images
        real[7] = plain.images(ASK).images[4]
        np.savez(place / "reals.npz", arr_0=real, arr_1=np.arange(30) % 3)
        plain.close()
        out = str(place / "index.npz")
        evaluator.make_reference(
            out, str(place / "reals.npz"), features="means", devices=1, with_images=True
        )
        made = Studio(folder, index=out)
        yield made
        made.close()


def test_a_copy_is_found(studio):
    found = studio.nearest(ASK)
    np.testing.assert_array_equal(found.shown.images, studio.images(ASK).images)
    assert found.near.places.shape == (6, 5)
    assert found.near.places[4, 0] == 7 and found.near.ratios[4, 0] < 1e-3
    others = np.delete(found.near.ratios[:, 0], 4)
    assert others.min() > 0.01
    assert studio.nearest(ASK) is found  # Made once.


def test_as_numbers_and_as_a_sheet(studio):
    found = studio.nearest(ASK)
    rows = forms.nearest_record(found, studio.index)
    assert [row["number"] for row in rows] == list(range(6))
    first = rows[4]["nearest"][0]
    assert (first["place"], first["class"]) == (7, 1) and first["of_threshold"] < 1e-3
    with Image.open(io.BytesIO(forms.nearest(found, studio.index, "title"))) as picture:
        assert picture.width > 6 * 16 and picture.height > 6 * 16


def test_a_sheet_is_of_the_first(studio):
    many = studio.nearest(Images(num=30))
    with Image.open(io.BytesIO(forms.nearest(many, studio.index, "t"))) as picture:
        full = picture.height
    few = studio.nearest(Images(num=forms.NEAREST_ROWS))
    with Image.open(io.BytesIO(forms.nearest(few, studio.index, "t"))) as picture:
        assert picture.height == full


def test_without_an_index(folder):
    plain = Studio(folder)
    with pytest.raises(ConfigError, match="there is no index; biggan app --index names one"):
        plain.nearest(ASK)
    plain.close()
