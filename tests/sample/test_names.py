import pytest

from biggan_jax.config import ConfigError
from biggan_jax.sample import names


def test_imagenet_has_a_name_a_class_in_its_order():
    """Against TFDS's list of synsets where it travels along, and well-known numbers."""
    synsets, known = names.imagenet()
    assert len(set(synsets)) == len(set(known)) == 1000
    assert list(synsets) == sorted(synsets)
    for number, synset, name in (
        (0, "n01440764", "tench"),
        (207, "n02099601", "golden retriever"),
        (963, "n07873807", "pizza"),
        (999, "n15075141", "toilet tissue"),
    ):
        assert (synsets[number], known[number]) == (synset, name)
    assert not any("," in name or name.isdecimal() or name != name.strip() for name in known)


def test_names_of_models():
    synsets, known = names.imagenet()
    assert names.of_model((), 1000) == names.of_model(synsets, 1000) == known
    assert names.of_model((), 3) == ("0", "1", "2")
    assert names.of_model(("cat", "dog"), 2) == ("cat", "dog")


def test_picking():
    _, known = names.imagenet()
    assert names.pick("golden retriever, 963,Tench,n15075141", known) == [207, 963, 0, 999]
    assert names.pick("all", ("a", "b")) == [0, 1]
    # A name that is a number is that name; another number is a number.
    assert names.pick("5,3,0", ("3", "5", "8")) == [1, 0, 0]
    with pytest.raises(ConfigError, match=r"'gold retriever' is no class.*'golden retriever'\?"):
        names.pick("gold retriever", known)
    for wrong in ("3", "-1", "", "a,,b"):
        with pytest.raises(ConfigError, match="is no class: there are 0 to 1"):
            names.pick(wrong, ("a", "b"))
