import os

import numpy as np
import pytest
from PIL import Image

from biggan_jax.sample.sheets import save_png, sheet, to_uint8


def test_to_uint8_rounds_and_clips():
    x = np.array([-1.2, -1, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.999, 1, 3], np.float64)
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 1, 255, 255, 255])
    assert to_uint8(x).dtype == np.uint8
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(every / 127.5 - 1), every)


def test_to_uint8_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([0, np.nan]))


def test_bare_sheet_holds_every_pixel_in_row_order():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    page = np.asarray(sheet(images, columns=3, scale=2))
    # Margins of 8, gaps of 2.
    assert page.shape == (8 + 6 + 2 + 6 + 8, 8 + 8 + 2 + 8 + 2 + 8 + 8, 3)
    for i, image in enumerate(images):
        top, left = 8 + i // 3 * 8, 8 + i % 3 * 10
        cell = page[top : top + 6, left : left + 8]
        np.testing.assert_array_equal(cell, image.repeat(2, 0).repeat(2, 1))
    assert (page[16:22, 28:36] == 255).all()  # The sixth place stays empty.


@pytest.mark.parametrize(("size", "wide"), [(16, 64), (32, 64), (64, 64), (128, 128)])
def test_small_images_are_enlarged(size, wide):
    page = sheet(np.zeros((2, size, size, 3), np.uint8), columns=2)
    assert page.size == (8 + wide + 2 + wide + 8, 8 + wide + 8)


def test_labels_take_room_outside_the_images():
    images = np.full((4, 16, 16, 3), 7, np.uint8)
    bare = np.asarray(sheet(images, 2))
    full = np.asarray(
        sheet(images, 2, ["cat", "a very long class name"], ["first", "second"], title="Title")
    )
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] > bare.shape[1]
    inner = bare[8:-8, 8:-8]
    np.testing.assert_array_equal(full[-8 - len(inner) : -8, -8 - inner.shape[1] : -8], inner)
    above = full[: -8 - len(inner)]
    beside = full[-8 - len(inner) : -8, : -8 - inner.shape[1]]
    assert (above < 128).any()
    assert (beside < 128).any()
    # A long label does not run into the margin.
    assert (full[:, -8:] == 255).all()


def test_a_long_title_widens_the_page():
    page = sheet(np.zeros((1, 16, 16, 3), np.uint8), 1, title="step 12,000, truncation 0.5, seed 0")
    assert page.width > 200
    assert (np.asarray(page)[:, -8:] == 255).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"columns": 0}, "columns=0"),
        ({"columns": 2, "scale": 0}, "scale=0"),
        ({"columns": 2, "column_labels": ["a"]}, "1 column labels for 2 columns"),
        ({"columns": 2, "row_labels": ["a"]}, "1 row labels for 2 rows"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sheet(np.zeros((3, 8, 8, 3), np.uint8), **kwargs)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 8, 8, 3), np.float32),
        np.zeros((3, 8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_only_uint8_rgb_is_taken(images):
    with pytest.raises(ValueError, match="not uint8"):
        sheet(images, 2)


def test_save_png_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "samples" / "a.png"
    first = sheet(np.zeros((1, 8, 8, 3), np.uint8), 1)
    save_png(first, path)
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(first))
    before = path.read_bytes()

    def broken(source, target):
        assert os.path.getsize(source) > 0  # The new file is whole, and not yet in its place.
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_png(first, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
