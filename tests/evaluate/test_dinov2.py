"""DINOv2 in Flax, with random weights, against timm's; its pixels against Pillow's."""

import pickle

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import dinov2, extractors, metrics
from tests.evaluate import made, references

SMALL = (8, 2, 2)


def released(channels, blocks, seed=0):
    """Tensors under the released names, of sizes at which every one of them counts."""
    draws = np.random.default_rng(seed)

    def normal(scale, *shape):
        return draws.standard_normal(shape, np.float32) * np.float32(scale)

    state = {
        "cls_token": normal(0.5, 1, 1, channels),
        "pos_embed": normal(0.5, 1, 1 + 37**2, channels),
        "mask_token": normal(1, 1, channels),
        "patch_embed.proj.weight": normal(588**-0.5, channels, 3, 14, 14),
        "patch_embed.proj.bias": normal(0.1, channels),
    }

    def norm(key):
        state[f"{key}.weight"] = 1 + normal(0.2, channels)
        state[f"{key}.bias"] = normal(0.1, channels)

    norm("norm")
    for i in range(blocks):
        norm(f"blocks.{i}.norm1")
        norm(f"blocks.{i}.norm2")
        for key, inputs, outputs in (
            ("attn.qkv", channels, 3 * channels),
            ("attn.proj", channels, channels),
            ("mlp.fc1", channels, 4 * channels),
            ("mlp.fc2", 4 * channels, channels),
        ):
            # Beyond the usual size, so that attention has its favourites.
            state[f"blocks.{i}.{key}.weight"] = normal(1.5 * inputs**-0.5, outputs, inputs)
            state[f"blocks.{i}.{key}.bias"] = normal(0.1, outputs)
        for key in ("ls1.gamma", "ls2.gamma"):
            state[f"blocks.{i}.{key}"] = 0.3 + normal(0.1, channels)
    return state


@pytest.fixture
def small(monkeypatch):
    """A network of the same make that compiles in no time."""
    monkeypatch.setitem(dinov2.SHAPES, "dinov2_vitb14", SMALL)
    return released(*SMALL[:2])


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dinov2_vitb14", pytest.param("dinov2_vitl14", marks=pytest.mark.long)]
)
def test_features_are_timms(name):
    timm = references.load("timm")
    import torch
    from torch.nn import functional as F

    channels, blocks, _ = dinov2.SHAPES[name]
    state = released(channels, blocks)
    images = made.squares(2, 224).astype(np.float32)
    x = (images - np.float32(dinov2.ZERO)) / np.float32(dinov2.UNIT)
    params = dinov2.convert(state, name)
    network = dinov2.VisionTransformer(*dinov2.SHAPES[name])
    with jax.default_matmul_precision("highest"):
        found = jax.jit(network.apply)({"params": params}, x)["features"]

    tensors = {key: torch.from_numpy(array) for key, array in state.items() if "mask" not in key}
    # As interpolate_pos_encoding of facebookresearch/dinov2 calls it; timm has another way.
    place = tensors["pos_embed"]
    grid = place[:, 1:].reshape(1, 37, 37, channels).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    grid = grid.permute(0, 2, 3, 1).reshape(1, 256, channels)
    tensors["pos_embed"] = torch.cat([place[:, :1], grid], dim=1)
    size = {"dinov2_vitb14": "base", "dinov2_vitl14": "large"}[name]
    model = timm.create_model(f"vit_{size}_patch14_dinov2", img_size=224, num_classes=0)
    model.load_state_dict(tensors)
    with torch.no_grad():
        expected = model.eval().forward_features(torch.from_numpy(x.transpose(0, 3, 1, 2)))[:, 0]
    assert np.abs(expected.numpy()).max() > 1
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def save(path, state):
    torch = pytest.importorskip("torch")
    torch.save({key: torch.from_numpy(array) for key, array in state.items()}, path)


@pytest.mark.interop
def test_weights_name_the_scores(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no .*get https://.*/dinov2_vitb14_pretrain"):
        extractors.load("dinov2_vitb14")
    place = tmp_path / "biggan-jax" / "dinov2"
    place.mkdir(parents=True)
    save(place / "dinov2_vitb14_pretrain.pth", small)
    extractor = extractors.load("dinov2_vitb14")
    assert extractor.name == f"dinov2_vitb14_{extractor.sha256[:8]}"
    assert extractor.about()["range"] == "(x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]"
    assert metrics.name_of("fd", extractor) == f"fd_{extractor.name}"
    with pytest.raises(ConfigError, match="has no classes to score"):
        metrics.parse("fd,is", extractor)
    # One colour, the mean of ImageNet's channel, is zero.
    pixels = np.zeros((1, 20, 20, 3), np.uint8) + np.uint8([124, 116, 104])
    found = extractor(extractor.params, pixels)["features"]
    x = (np.float32([124, 116, 104]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    whole = np.broadcast_to(x.astype(np.float32), (1, 224, 224, 3))
    expected = extractor.network.apply({"params": extractor.params}, whole)["features"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.interop
def test_other_weights_are_refused(small, tmp_path):
    path = str(tmp_path / "x.pth")
    save(path, {key: small[key] for key in small if key != "blocks.1.ls2.gamma"})
    with pytest.raises(ConfigError, match=r"another network: .*'blocks.1.ls2.gamma' is missing"):
        extractors.load("dinov2_vitb14", path)
    save(path, small | {"norm.weight": np.ones(9, np.float32)})
    with pytest.raises(ConfigError, match=r"'norm.weight' is of shape \[9\] and must be \[8\]"):
        extractors.load("dinov2_vitb14", path)
    with open(path, "wb") as f:
        pickle.dump([1, 2], f)
    with pytest.raises(ConfigError):
        extractors.load("dinov2_vitb14", path)
