import json

import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.data import loader, report
from biggan_jax.data import source as source_lib
from biggan_jax.data.source import Source, evenly_spaced
from tests.data.made import Made


def made(labels, cheap=True, names="abcd", split="train"):
    return Made(len(labels), 16, labels=labels, cheap=cheap, names=names, split=split)


def make_config(num_classes=4):
    c = config_lib.default()
    c.update(batch_size=8)
    c.data.name = "made"
    c.model.update(resolution=16, num_classes=num_classes, z_dim=120)
    c.model.update(g_attention=(), d_attention=())
    return config_lib.resolve(c, 1)


def make_loader(source, cache_mib=1.0):
    return loader.Loader(source, batch_size=2, num_batches=1, seed=0, cache_mib=cache_mib)


def make_report(labels, num_classes=4, cache_mib=1.0, **kwargs):
    source = made(labels, **kwargs)
    return report.data_report(source, make_config(num_classes), make_loader(source, cache_mib))


LABELS = [0, 1, 1, 3, 3, 3, 0, 3, 1, 1, 1]


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_counts(cache_mib):
    r = make_report(LABELS, cache_mib=cache_mib)
    assert r["images"] == r["labels_counted"] == r["values_from_images"] == 11
    assert r["classes"] == 4
    assert r["images_per_class"] == [2, 5, 0, 4]
    assert r["smallest"] == {"label": 0, "class": "a", "images": 2}
    assert r["largest"] == {"label": 1, "class": "b", "images": 5}
    assert r["missing_classes"] == ["c"]
    assert (r["label_min"], r["label_max"]) == (0, 3)
    assert (r["value_min"], r["value_max"]) == (0, 10)
    assert (r["name"], r["split"], r["resolution"]) == ("made", "train", 16)
    assert json.loads(json.dumps(r)) == r
    report.check(r, make_config())


def test_large_sources_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(source_lib, "LABEL_SAMPLE", 100)
    monkeypatch.setattr(Source, "count_all_up_to", 9_999)
    labels = np.arange(10_000) % 4
    source = made(labels, cheap=False)
    r = report.data_report(source, make_config(), make_loader(source, cache_mib=0))
    assert r["images"] == 10_000
    assert r["labels_counted"] == len(source.asked) == 100
    assert sum(r["images_per_class"]) == 100
    assert r["values_from_images"] == 1000
    assert r["value_max"] - r["value_min"] > 200
    assert "(of 100 labels, evenly spaced)" in report.text(r)
    report.reals(source, make_config(), 1, 4)
    assert len(source.asked) == 100, "the sample was read twice"


def test_evenly_spaced():
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced(10, 5).tolist() == [0, 2, 4, 6, 8]
    chosen = evenly_spaced(1_281_167, 50_000)
    assert len(np.unique(chosen)) == 50_000
    assert chosen.max() < 1_281_167


def test_text():
    text = report.text(make_report(LABELS))
    assert "made, split train" in text
    assert "11 at 16 x 16 px" in text
    assert "2 (a) to 5 (b)" in text
    assert "1 classes: c" in text
    assert "0 to 10 of 0 to 255" in text
    assert "evenly spaced" not in text
    assert text.endswith("\n")


def test_text_of_parts_and_crops():
    config = config_lib.ml_collections.ConfigDict(make_config())
    config.data.update(fraction=0.1, fraction_seed=3, crop="random_zoom")
    source = made(LABELS)
    r = report.data_report(source, config, make_loader(source))
    assert (r["fraction"], r["fraction_seed"], r["crop"]) == (0.1, 3, "random_zoom")
    assert r["missing_guarantees"] == []
    text = report.text(r)
    assert "fraction          0.1 of the records, drawn by data.fraction_seed=3" in text
    assert "crop              random_zoom" in text
    plain = report.text(make_report(LABELS))
    assert not any(word in plain for word in ("fraction", "crop", "TFRecord"))


def test_text_cuts_long_lists_of_missing_classes():
    names = [f"class{i}" for i in range(100)]
    text = report.text(make_report([0, 1], num_classes=100, names=names))
    assert "98 classes: class2, class3, class4, class5, class6, ..." in text


def test_a_folder_of_one_class_is_refused_where_several_are_configured():
    r = make_report([0, 0, 0], names=["cats"])
    with pytest.raises(ConfigError) as e:
        report.check(r, make_config(4))
    for word in ("model.num_classes=4", "3 images", "'cats'", "model.num_classes=1", "data.dir"):
        assert word in str(e.value)
    report.check(r, make_config(1))


def test_a_split_of_one_class_is_refused_where_several_are_configured():
    with pytest.raises(ConfigError, match=r"one class 'c'.*data\.split"):
        report.check(make_report([2, 2]), make_config(4))


@pytest.mark.parametrize("configured", [3, 5, 1])
def test_another_number_of_classes_is_refused(configured):
    r = make_report(LABELS)
    with pytest.raises(ConfigError) as e:
        report.check(r, make_config(configured))
    for word in (f"model.num_classes={configured}", "4 classes", "set model.num_classes=4"):
        assert word in str(e.value)


@pytest.mark.parametrize("bad", [-1, 4])
def test_labels_outside_are_refused(bad):
    r = make_report([0, 1, 2, bad], split="test")
    assert sum(r["images_per_class"]) == 3
    with pytest.raises(ConfigError) as e:
        report.check(r, make_config())
    for word in ("data.split='test'", str(bad), "0 to 3"):
        assert word in str(e.value)


def test_all_labels_outside_are_refused():
    r = make_report([-1, -1])
    assert r["smallest"] is None
    report.text(r)
    with pytest.raises(ConfigError, match="labels from -1 to -1"):
        report.check(r, make_config())


@pytest.mark.parametrize("given", ["source", "cached", "direct"])
def test_reals(given):
    source = made(LABELS)
    argument = source if given == "source" else make_loader(source, 1 if given == "cached" else 0)
    sheet = report.reals(argument, make_config(), rows=3, classes=4)
    assert sheet.shape == (12, 16, 16, 3)
    assert sheet.dtype == np.uint8
    grid = sheet[:, 0, 0, 0].reshape(3, 4)
    # Records of class 0: 0, 6 and again 0; class 2 has none.
    expected = [[0, 1, 128, 3], [6, 2, 128, 4], [0, 8, 128, 5]]
    assert grid.tolist() == expected


def test_reals_of_more_classes_than_there_are():
    with pytest.raises(ConfigError, match=r"sample\.classes=5.*4 classes"):
        report.reals(made(LABELS), make_config(), rows=1, classes=5)
