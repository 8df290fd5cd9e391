"""How measured times become the table."""

import pytest

from benchmarks import conv_forms
from biggan_jax.models import forms


def test_a_form_has_to_be_clearly_faster():
    assert conv_forms.best({"plain": 1.0, "fused": 0.99}) == "plain"
    assert conv_forms.best({"plain": 1.0, "fused": 0.5, "phases": 0.6}) == "fused"


WINNERS = {
    ("conv3x3", 1, 4): "thin", ("conv3x3", 1, 8): "thin",
    ("conv3x3", 9, 4): "plain", ("conv3x3", 9, 8): "plain",
    ("conv3x3", 96, 4): "plain", ("conv3x3", 96, 8): "winograd",
    ("conv1x1", 1, 4): "plain", ("conv1x1", 1, 8): "plain",
}  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "side", "want"),
    [(3, 2, "thin"), (8, 64, "thin"), (9, 8, "plain"), (95, 8, "plain"), (96, 7, "plain"),
     (96, 8, "winograd"), (512, 64, "winograd")],
)  # fmt: skip
def test_the_table_says_what_was_measured(channels, side, want):
    part = conv_forms.as_table(WINNERS)
    assert set(part) == {"conv3x3"}  # Where plain always wins nothing need be said.
    table = {"cpu": {"float32": part}}
    assert forms.look_up(table, "cpu", "float32", "conv3x3", channels, side) == want
    assert forms.look_up(table, "gpu", "float32", "conv3x3", channels, side) == "plain"


def test_large_maps_of_attention_are_in_blocks_whatever_was_faster():
    at = lambda side: forms.look_up({"b": {"d": part}}, "b", "d", "attention", 9, side)  # noqa: E731
    for whole in ("plain", "whole"):
        part = {"attention": {"1": {"1": "plain", "32": "blocked", "64": whole}}}
        conv_forms.never_whole(part, "gpu")
        assert [at(side) for side in (16, 32, 64, 128)] == ["plain", *["blocked"] * 3]
        part = {"attention": {"1": {"1": whole}}}
        conv_forms.never_whole(part, "gpu")
        assert [at(side) for side in (32, 64, 128)] == [whole, "blocked", "blocked"]
    part = {}
    conv_forms.never_whole(part, "tpu")
    assert [at(side) for side in (32, 64, 128)] == ["plain", "plain", "blocked"]
