import pytest

from biggan_jax.parallel import slices
from biggan_jax.plan import bounds

FACTS = {
    "fits": True,
    "quick": False,
    "flops": 61.5e12 * 0.01,
    "bytes": 450e9 * 0.02,
    "roofline_seconds": 0.025,
    "cycles": {"convolutions": 20_000_000, "other": 8_200_000},
    "collectives": {"all-reduce": {"count": 3, "bytes": 328e6}},
}
CONFIG = {"batch_size": 2048, "d_steps": 2, "num_steps": 150_000}


def test_bounds_by_hand():
    found = bounds.seconds(FACTS, slices.find("v3-512"))
    # 123 TFLOP/s and 900 GB/s a chip of two; 940 MHz; 256 chips that send 2 x 255 / 256 x 328 MB
    # at 328 GB/s.
    assert found == pytest.approx(
        {"flops": 0.01, "hbm": 0.02, "roofline": 0.025, "cycles": 0.03, "links": 0.002 * 255 / 256}
    )


def test_a_chip_that_is_one_device_has_all_of_it():
    found = bounds.seconds(FACTS, slices.find("v4-8"))
    assert found["flops"] == pytest.approx(0.615e12 / 275e12)
    assert found["hbm"] == pytest.approx(9e9 / 1200e9)
    assert found["links"] == pytest.approx(2 * 3 / 4 * 328e6 / 300e9)


def test_one_chip_sends_nothing():
    assert bounds.link_bytes(FACTS["collectives"], slices.find("v5e-1")) == 0


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 2), ("all-gather", 1), ("reduce-scatter", 1), ("all-to-all", 2)],
)
def test_what_a_v3_chip_sends(kind, sent):
    where = slices.find("v3-32")  # 16 chips, two devices each.
    assert bounds.link_bytes({kind: {"count": 1, "bytes": 16.0}}, where) == sent * 15


def test_what_goes_between_slices_takes_no_links():
    counts = {"all-reduce": {"count": 1, "bytes": 16.0}}
    counts |= {"between-slices": {"count": 1, "bytes": 1e9}}
    assert bounds.link_bytes(counts, slices.find("v3-32x2")) == 2 * 15


def test_the_network_between_slices_bounds_where_its_rate_is_known():
    # 6.25 GB/s a chip, which is a device.
    facts = FACTS | {"collectives": {"between-slices": {"count": 1, "bytes": 6.25e9}}}
    assert bounds.seconds(facts, slices.find("v5p-64x2"))["network"] == pytest.approx(1.0)
    assert "network" not in bounds.seconds(facts, slices.find("v4-64x2"))
    assert "network" not in bounds.seconds(facts, slices.find("v5p-64"))


def test_a_quick_compile_bounds_by_flops_and_links_alone():
    found = bounds.seconds(FACTS | {"quick": True}, slices.find("v3-512"))
    assert set(found) == {"flops", "links"}


def test_outlook_by_hand():
    got = bounds.outlook(FACTS, CONFIG, slices.find("v3-512"), price=2.0)
    assert got["ruling"] == "cycles" and got["step_seconds"] == pytest.approx(0.03)
    assert got["images_per_second"] == pytest.approx(2048 * 2 / 0.03)
    assert got["hours"] == pytest.approx(1.25)  # 150,000 x 0.03 s
    assert got["chip_hours"] == pytest.approx(320)
    assert got["cost"] == pytest.approx(640)
    assert "cost" not in bounds.outlook(FACTS, CONFIG, slices.find("v3-512"))
