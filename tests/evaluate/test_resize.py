"""Each resize against the program whose pixels it gives."""

import numpy as np
import pytest
from PIL import Image

from biggan_jax.evaluate import resize
from tests.evaluate import made, references

# Sums of up to 13 products of float32 numbers up to 255, twice.
CLOSE = 2e-4


def ours(images, kind, size=299):
    return np.asarray(resize.resize(images, kind, size))


def test_tf1_bilinear_by_its_definition():
    images = made.squares(1, 20)[:, :13]
    found = ours(images, "tf1_bilinear", 31)[0]
    for i in range(31):
        for j in range(31):
            y, x = i * 13 / 31, j * 20 / 31
            top, left = int(y), int(x)
            down, right = min(top + 1, 12), min(left + 1, 19)
            dy, dx = y - top, x - left
            corners = images[0].astype(float)
            expected = (1 - dy) * (1 - dx) * corners[top, left] + dy * dx * corners[down, right]
            expected += (1 - dy) * dx * corners[top, right] + dy * (1 - dx) * corners[down, left]
            np.testing.assert_allclose(found[i, j], expected, atol=CLOSE)


@pytest.mark.parametrize("size", [32, 128, 299, 400])
def test_pil_bicubic_is_pillows(size):
    images = made.squares(2, size)
    for image, found in zip(images, ours(images, "pil_bicubic"), strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            expected = np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(found[..., channel], expected.clip(0, 255), atol=CLOSE)


@pytest.mark.parametrize("kind", resize.KINDS)
def test_rows_of_weights_sum_to_one(kind):
    for size, out in ((8, 299), (299, 299), (512, 224), (1, 5)):
        matrix = resize.matrix(kind, size, out)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    same = ours(made.squares(1, 64), kind, 64)
    np.testing.assert_allclose(same, made.squares(1, 64), atol=CLOSE)


def test_an_unknown_resize_is_an_error():
    with pytest.raises(ValueError, match="'area' is none of"):
        resize.matrix("area", 4, 4)


@pytest.mark.interop
@pytest.mark.parametrize("size", [32, 64, 128, 299, 400])
def test_the_reference_programs(size):
    torch = pytest.importorskip("torch")
    theirs = references.load("torch_fidelity.interpolate_compat_tensorflow")
    clean = references.load("cleanfid.resize").build_resizer("clean")
    images = made.squares(2, size)
    channels_first = torch.tensor(images.transpose(0, 3, 1, 2)).float()
    interpolate = torch.nn.functional.interpolate
    expected = {
        "tf1_bilinear": theirs.interpolate_bilinear_2d_like_tensorflow1x(
            channels_first, (299, 299), align_corners=False
        ),
        "torch_bilinear": interpolate(
            channels_first, (299, 299), mode="bilinear", align_corners=False
        ),
    }
    for kind, pixels in expected.items():
        # They find places in float32: an error of 2^-24 of the size, times the step of a pixel.
        np.testing.assert_allclose(
            ours(images, kind), pixels.numpy().transpose(0, 2, 3, 1), atol=CLOSE + 2e-5 * size
        )
    pixels = np.stack([clean(image) for image in images])
    np.testing.assert_allclose(ours(images, "pil_bicubic"), pixels, atol=CLOSE)


@pytest.mark.parametrize("size", [32, 128, 256, 400])
def test_pil_bicubic_8bit_is_pillows(size):
    images = made.squares(2, size)
    found = ours(images, "pil_bicubic_8bit", 224)
    for image, one in zip(images, found, strict=True):
        picture = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
        differences = np.abs(one - np.asarray(picture, np.float32))
        # Pillow's weights are of 22 bits: what lies at a half may go the other way.
        assert differences.max() <= 1 and (differences > 0).mean() < 1e-3
