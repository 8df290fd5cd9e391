import subprocess

import jax
import pytest

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import estimate, preset


def small(**changes):
    c = config_lib.default()
    c.batch_size = 512
    c.model.update(resolution=32, g_ch=16, d_ch=16, z_dim=80, g_attention=(), d_attention=())
    for key, value in changes.items():
        config_lib.override(c, key.replace("__", "."), str(value))
    return c


@pytest.fixture(scope="module")
def sizes():
    """Total bytes of the settings that a choice is among, at 512 images on one device."""
    found = {}
    for remat in (False, True):
        c = small(model__remat=remat, model__dtype="bfloat16")
        estimator = estimate.Estimator(config_lib.resolve(c, 1))
        for a in (1, 2, 4, 512):
            found[a, remat] = estimator.parts(512 // a)
    return found


def test_parts_add_up_and_remat_and_micro_batches_save(sizes):
    for parts in sizes.values():
        assert sum(parts.values()) == 2 * parts["total"]
        assert min(parts.values()) > 0
    total = {key: parts["total"] for key, parts in sizes.items()}
    assert total[1, False] > total[2, False] > total[4, False] > total[512, False]
    assert total[1, True] < total[1, False]
    assert {parts["state"] for parts in sizes.values()} == {sizes[1, False]["state"]}


@pytest.mark.parametrize(
    ("room_for", "want"),
    [((1, False), (1, False)), ((2, False), (2, False)), ((512, False), None)],
)
def test_the_first_that_fits(sizes, room_for, want):
    chosen, parts = preset.choose(small(model__dtype="bfloat16"), sizes[room_for]["total"], 1)
    assert parts["total"] <= sizes[room_for]["total"]
    if want:
        assert (chosen["accumulation"], chosen["model.remat"]) == want
    else:
        assert 512 % chosen["accumulation"] == 0 and chosen["accumulation"] > 4


def test_recomputing_comes_before_small_micro_batches(sizes):
    room = sizes[2, True]["total"]
    assert sizes[2, False]["total"] > room
    chosen, _ = preset.choose(small(model__dtype="bfloat16"), room, 1)
    assert chosen == {"accumulation": 2, "model.remat": True}


def test_what_does_not_fit_is_said_in_a_sentence():
    c = small(preset="gpu:h100x1")
    with pytest.raises(ConfigError, match=r"estimated to need [\d.]+ GiB .* there are 1.0; use a"):
        preset.choose(c, slices.GIB, 1)


def test_named_gpus():
    said = []
    c = preset.apply(small(preset="gpu:h100x8"), said.append)
    assert c.model.dtype == "bfloat16" and c.accumulation == 1 and not c.model.remat
    assert "8 x h100 of 75 GiB" in said[0] and "activations" in said[0]
    assert config_lib.resolve(c, 8).batch_size == 512


def test_installed_gpus(monkeypatch):
    def answer(text):
        done = subprocess.CompletedProcess([], 0, stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    answer("NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\n")
    assert preset._hardware("gpu") == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, 2, 1)
    answer("")
    with pytest.raises(ConfigError, match="nvidia-smi shows no GPU on this machine"):
        preset.apply(small(preset="gpu"))


def test_no_preset_and_unknown_ones():
    c = small()
    assert preset.apply(c) is c
    with pytest.raises(ConfigError, match="preset='tpu': must be gpu"):
        preset.apply(small(preset="tpu"))
    with pytest.raises(ConfigError, match=r"preset=gpu:h1000x8: .* did you mean .gpu:h100x8."):
        preset.apply(small(preset="gpu:h1000x8"))


def test_activations_are_those_a_compiler_keeps():
    """XLA:CPU's temporaries of a plain step: it fuses some away and adds its own working set."""
    config = config_lib.resolve(small(batch_size=64), 1)
    parts = estimate.Estimator(config, "gpu").parts(64)
    mesh = mesh_lib.make_mesh(1)
    update = step_lib.Update(config, mesh)
    shapes = step_lib.abstract_state(config, mesh)
    draws = jax.eval_shape(update.draw, 0)
    real = jax.ShapeDtypeStruct((64, 32, 32, 3), "float32")
    label = jax.ShapeDtypeStruct((64,), "int32")
    z = jax.ShapeDtypeStruct(draws.d_z.shape[1:], "float32")
    compiled = jax.jit(update.d_gradients).lower(shapes, real, label, z, label).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 < parts["activations"] / temporaries < 2
