"""The search for what fits, over a compiler that is made up; `test_compile.py` has the real one."""

import pytest

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.parallel import slices
from biggan_jax.parallel.slices import GIB
from biggan_jax.plan import search, text


def config(**changes):
    c = config_lib.default()
    c.model.dtype = changes.pop("dtype", "float32")
    c.model.remat = changes.pop("remat", False)
    c.parallel = "zero1"
    c.update(**changes)
    return c


V3_8 = slices.find("v3-8")  # 15.48 GiB a device.


def test_a_plan_that_fits_is_one_compile(compiled):
    answer = search.compare(config(batch_size=64), [V3_8], price=2.0)
    (row,) = answer["plans"]
    assert compiled == [("v3-8", 64, 1, False)] and answer["tried"] == {}
    assert row["fits"] and row["need_bytes"] == 8 * GIB and row["images_a_device"] == 8
    # 8e12 FLOPs on half of 123 TFLOP/s; 150,000 steps; four chips at 2 an hour.
    assert row["cost"] == pytest.approx(8e12 / 61.5e12 * 150_000 / 3600 * 4 * 2)
    said = text.text(answer)
    assert "fits: needs 8.00 of 15.48 GiB" in said and "Bounds are bounds" in said


def test_what_does_not_fit_says_need_and_limit_and_what_does(compiled):
    answer = search.compare(config(batch_size=256), [V3_8])
    # 32 images: 32 GiB. Recomputing takes 16, two micro-batches 16, four 8.
    assert compiled == [
        ("v3-8", 256, 1, False),
        ("v3-8", 256, 1, True),
        ("v3-8", 256, 2, False),
        ("v3-8", 256, 4, False),
    ]
    said = text.text(answer)
    assert "does not fit: needs 32.00 GiB of 15.48" in said
    assert "v3-8: fits with --config.accumulation=4" in said
    assert "batch norm and u then see micro-batches" in said


def test_recomputing_is_taken_where_it_suffices(compiled):
    answer = search.compare(config(batch_size=128), [V3_8])
    assert compiled[1:] == [("v3-8", 128, 1, True)]
    assert "v3-8: fits with --config.model.remat=True" in text.text(answer)


def test_zero1_comes_first_and_stays(compiled):
    answer = search.compare(config(batch_size=120, parallel="data"), [V3_8])
    assert len(compiled) == 2  # 15 images and a GiB do not fit; 15 images do.
    assert "v3-8: fits with --config.parallel=zero1" in text.text(answer)
    answer = search.compare(config(batch_size=128, parallel="data"), [V3_8])
    said = "v3-8: fits with --config.parallel=zero1 --config.model.remat=True"
    assert said in text.text(answer)


@pytest.mark.parametrize("parallel", ["data", "zero1"])
def test_in_bfloat16_fsdp_takes_zero1s_place(compiled, parallel):
    c = config(batch_size=128, parallel=parallel, dtype="bfloat16")
    said = text.text(search.compare(c, [V3_8]))
    assert "v3-8: fits with --config.parallel=fsdp --config.model.remat=True" in said
    assert "zero1" not in said


@pytest.mark.parametrize(
    ("dtype", "parallel", "name", "want"),
    [
        ("bfloat16", "data", "v3-8", {"parallel": "fsdp"}),
        ("bfloat16", "fsdp", "v3-8", {}),
        ("float32", "data", "v3-8", {"parallel": "zero1"}),
        ("float32", "zero1", "v3-8", {}),
        ("float32", "fsdp", "v3-8", {}),
        ("bfloat16", "data", "v5e-1", {}),  # One device has nothing to cut.
    ],
)
def test_what_is_cut_up_first(dtype, parallel, name, want):
    assert search._cut(config(dtype=dtype, parallel=parallel), slices.find(name)) == want


def test_both_and_then_smaller_batches_are_tried(compiled):
    # One image of 128 px a device does not fit in 0.3 GiB by any means.
    answer = search.compare(config(batch_size=16), [V3_8], limit=0.3 * GIB)
    assert compiled[1:] == [
        ("v3-8", 16, 1, True),
        ("v3-8", 16, 2, False),
        ("v3-8", 16, 2, True),
        ("v3-8", 8, 1, False),
    ]
    assert "nothing that was tried fits; take a larger slice" in text.text(answer)
    assert "needs 2.00 GiB of 0.30" in text.verdict(answer["plans"][0])


def test_a_batch_that_cannot_become_smaller(compiled):
    answer = search.compare(config(batch_size=8, remat=True), [V3_8], limit=1)
    assert len(compiled) == 1 and "no smaller setting to try" in text.text(answer)


def test_a_sweep_takes_the_cheapest_of_what_fits(compiled):
    where = [V3_8, slices.find("v3-32")]
    answer = search.compare(config(batch_size=128), where, sweep=True)
    # On v3-8 remat fits and costs 1.3 times the FLOPs; two micro-batches fit and cost as many as
    # v3-32 does at once, but more of v3-32's chips send more.
    assert compiled == [
        ("v3-8", 128, 1, False),
        ("v3-8", 128, 1, True),
        ("v3-8", 128, 2, False),
        ("v3-32", 128, 1, False),
    ]
    best = answer["cheapest"]
    fitting = [r for r in [*answer["plans"], *answer["tried"]["v3-8"]] if r["fits"]]
    assert len(fitting) == 3 and best["chip_hours"] == min(r["chip_hours"] for r in fitting)
    assert not best["remat"]
    assert "cheapest by these bounds:" in text.text(answer)


def test_a_table_of_slices(compiled):
    where = [slices.find(name) for name in ("v3-8", "v3-32")]
    lines = text.text(search.compare(config(batch_size=128), where)).splitlines()
    assert lines[0] == "biggan128, batch 128" and lines[2].split()[:7] == (
        ["v3-8", "compile", "8", "16", "16.00", "15.48", "NO"]
    )
    assert lines[3].split()[:7] == ["v3-32", "compile", "32", "4", "4.00", "15.48", "yes"]


@pytest.mark.parametrize(
    ("changes", "names", "how", "said"),
    [
        ({"batch_size": 100}, ["v3-8"], {}, "batch_size=100: must be a multiple"),
        ({"device_count": 4}, ["v3-8"], {}, "device_count=4: v3-8 has 8 devices"),
        ({}, ["v3-8", "v5e-8"], {"price": 1.0}, "cannot be that of v3 and v5e chips alike"),
    ],
)
def test_bad_input_is_found_before_a_compile(compiled, changes, names, how, said):
    with pytest.raises(ConfigError, match=said):
        search.compare(config(**changes), [slices.find(n) for n in names], **how)
    assert compiled == []
