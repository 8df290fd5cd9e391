"""FID's Inception-v3 against the programs it comes from, and the way its weights come in."""

import json
import pathlib

import jax
import numpy as np
import pytest

from biggan_jax import cli
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import extractors, inception, resize
from biggan_jax.interop import bundle, pth
from tests.evaluate import made, references


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    pth.write(path, made.inception_state())
    return str(path)


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("imported") / "inception")
    notes = extractors.import_inception(source, out)
    assert len(notes) == 1 and "fd_inception_" in notes[0]
    return out


def test_foreign_weights_have_a_name_of_their_own(source, imported):
    for kind in ("inception", "inception_clean"):
        found = extractors.load(kind, imported)
        assert found.sha256 == bundle.sha256(source)
        assert found.name == f"{kind}_{found.sha256[:8]}"
        assert not found.is_fid
    assert found.about()["resize"] == "pil_bicubic to 299"


def test_only_the_weights_of_2015_give_fid(imported, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", extractors.load("inception", imported).sha256)
    found = extractors.load("inception", imported)
    assert found.name == "inception" and found.is_fid


def test_without_weights_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        extractors.load("inception")
    for part in (inception.FILE, inception.SHA256, "pytorch-fid", "effnetlite0", str(tmp_path)):
        assert part in str(caught.value)


def test_the_cache_folder_is_looked_into(imported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "biggan-jax").mkdir()
    (tmp_path / "biggan-jax" / "inception").symlink_to(imported)
    assert extractors.load("inception").sha256 == extractors.load("inception", imported).sha256


def test_damage_is_found(imported, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    imported = pathlib.Path(imported)
    data = bytearray((imported / "inception.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "inception.safetensors").write_bytes(data)
    (copy / "inception.json").write_text((imported / "inception.json").read_text())
    with pytest.raises(ConfigError, match="is damaged"):
        extractors.load("inception", str(copy))
    (copy / "inception.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(ConfigError, match=r"is damaged|cannot be read"):
        extractors.load("inception", str(copy))


def test_other_networks_are_refused(tmp_path, capsys):
    path, out = tmp_path / "other.pth", tmp_path / "out"
    state = {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3), np.float32)}
    pth.write(path, state)
    assert cli.main(["import", str(path), str(out), "--format=inception"]) == 2
    assert "is not the Inception-v3 of FID" in capsys.readouterr().err
    assert not out.exists()


def test_the_verb_imports(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["import", source, str(out), "--format=inception"]) == 0
    assert "are no FID" in capsys.readouterr().out
    assert extractors.load("inception", str(out)).name.startswith("inception_")


@pytest.mark.interop
@pytest.mark.slow
def test_features_are_torch_fidelitys_and_pytorch_fids(source, imported, monkeypatch):
    torch = pytest.importorskip("torch")
    fidelity = references.load("torch_fidelity.feature_extractor_inceptionv3")
    network = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=source
    )
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, out: spatial.append(out.numpy()))
    pytorch_fid = references.load("pytorch_fid.inception")
    state = torch.load(source, weights_only=True)
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *a, **k: state)
    other = pytorch_fid.InceptionV3([3]).eval()
    one, two = (extractors.load(name, imported) for name in ("inception", "inception_pytorch"))
    run = jax.jit(lambda x: one.network.apply({"params": one.params}, x))  # Both are this network.

    def call(extractor, images):
        x = resize.resize(images, extractor.resize, extractor.size)
        return run((x - extractor.zero) / extractor.unit)

    for size in (64, 299):
        images = made.squares(2, size)
        channels_first = torch.tensor(images.transpose(0, 3, 1, 2))
        features, logits = (x.numpy() for x in network(channels_first))
        found = call(one, images)
        # Constant features would be equal whatever lay before.
        assert np.abs(features[0] - features[1]).mean() > 0.02 * features.mean() > 1e-3
        scale = features.max()
        np.testing.assert_allclose(found["features"], features, atol=1e-4 * scale)
        np.testing.assert_allclose(found["logits"], logits, atol=1e-4 * np.abs(logits).max())
        seven = spatial.pop()[:, :7].transpose(0, 2, 3, 1).reshape(2, -1)
        np.testing.assert_allclose(found["spatial"], seven, atol=1e-4 * seven.max())
        features = other(channels_first.float() / 255)[0][..., 0, 0].detach().numpy()
        np.testing.assert_allclose(call(two, images)["features"], features, atol=1e-4 * scale)
