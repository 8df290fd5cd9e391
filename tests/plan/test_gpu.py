"""Plans for GPUs: estimates by hand, what fits, what is said of them, and what is refused."""

import json

import jax
import pytest

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.gan import flops
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.parallel import slices
from biggan_jax.parallel.slices import GIB
from biggan_jax.plan import compile as compile_lib
from biggan_jax.plan import estimate, gpu, preset, search, text

H100, H100X8 = slices.find("gpu:h100"), slices.find("gpu:h100x8")
MODEL = {
    **{"resolution": 32, "g_ch": 16, "d_ch": 16, "z_dim": 16, "shared_dim": 16, "num_classes": 10},
    **{"g_attention": (), "d_attention": ()},
}
ARGS = [f"--config.model.{k}={v}" for k, v in MODEL.items()]


def small(**changes):
    c = config_lib.default()
    c.batch_size = 512
    c.model.update(MODEL)
    for key, value in changes.items():
        config_lib.override(c, key.replace("__", "."), str(value))
    return c


def parts(where=H100, images=None, **changes):
    resolved = config_lib.resolve(small(**changes), where.devices)
    images = images or config_lib.micro_batch_size(resolved) // where.devices
    return estimate.Estimator(resolved).parts(images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(autouse=True)
def no_compile(monkeypatch):
    monkeypatch.setattr(compile_lib, "_ask", lambda *_: pytest.fail("compiled"))


def test_parts_by_hand():
    got = parts()
    s = step_lib.abstract_state(config_lib.resolve(small(), 1), mesh_lib.make_mesh(1))
    g, d = count(s.g_params), count(s.d_params)
    # Weights, second moments and G's average; two counts of Adam and the step; u and statistics.
    rest = count([s.g_batch_stats, s.ema_batch_stats, s.g_spectral, s.d_spectral])
    assert got["state"] == 4 * (3 * g + 2 * d + rest + count([s.g_opt, s.d_opt]) - g - d + 1)
    assert count([s.g_opt, s.d_opt]) - g - d in range(5)
    # Two D steps of 512 pictures of 32 x 32 x 3 bytes and a label, and 512 as floats.
    assert got["batch"] == 512 * (2 * (3072 + 4) + 4 * 3072)
    assert got["gradients"] == 4 * max(g, d)
    given = got["state"] + got["batch"] + got["gradients"] + got["activations"]
    assert got["reserve"] == int(1.5 * GIB + 0.1 * given)
    assert got["total"] == given + got["reserve"]


@pytest.mark.parametrize("parallel", ["data", "zero1", "fsdp"])
def test_the_state_is_cut_as_devices_would_hold_it(parallel):
    got = parts(H100X8, parallel=parallel)
    real = step_lib.abstract_state(
        config_lib.resolve(small(parallel=parallel), 8), mesh_lib.make_mesh(8)
    )
    assert got["state"] == estimate.device_bytes(real)
    assert got["batch"] == parts()["batch"] / 8 and got["gradients"] == parts()["gradients"]
    whole = parts(H100X8)["state"]
    assert got["state"] == whole if parallel == "data" else got["state"] < 0.8 * whole


@pytest.mark.parametrize("parallel", ["data", "fsdp"])
def test_each_of_two_hosts_holds_all_parts(parallel):
    # So wide that 16 devices would hold smaller parts than 8.
    wide = small(parallel=parallel, model__g_ch=32, model__d_ch=32)
    one, two = (search.plan(wide, slices.find(f"gpu:h100x{n}")) for n in (8, 16))
    if parallel == "fsdp":
        alone = estimate.Estimator(config_lib.resolve(wide, 16)).parts(1)["state"]
        assert alone < 0.8 * two["memory"]["state"]
    assert two["memory"]["state"] == one["memory"]["state"]
    assert two["memory"]["batch"] == one["memory"]["batch"] / 2


def test_the_largest_micro_batch_is_the_last_that_fits():
    estimator = estimate.Estimator(config_lib.resolve(small(), 1))
    for images in (1, 7, 300):
        assert estimator.largest(estimator.parts(images)["total"]) == images
        assert estimator.largest(estimator.parts(images)["total"] - 1) == images - 1


@pytest.mark.parametrize(("dtype", "peak"), [("bfloat16", 989e12), ("float32", 989e12 / 2)])
def test_a_plan_by_hand(dtype, peak):
    c = small(model__dtype=dtype)
    answer = search.compare(c, [H100X8], price=2.0)
    (row,) = answer["plans"]
    assert row["estimated"] and row["fits"] and answer["tried"] == {}
    needed = flops.step(config_lib.resolve(c, 8)).needed
    assert row["flops_needed"] == needed and row["flops"] == needed / 8
    assert row["step_seconds"] == pytest.approx(needed / 8 / peak)
    assert row["ruling"] == "flops" and set(row["bounds_seconds"]) == {"flops"}
    assert row["images_per_second"] == pytest.approx(512 * 2 / row["step_seconds"])
    assert row["hours"] == pytest.approx(row["step_seconds"] * 150_000 / 3600)
    assert row["cost"] == pytest.approx(row["hours"] * 8 * 2)
    assert row["images_a_device"] == 64 < row["largest_images_a_device"]
    assert row["need_bytes"] == row["memory"]["total"] == sum(row["memory"].values()) / 2
    assert row["limit_bytes"] == 80e9
    said = text.text(answer)
    assert "8 h100 GPU(s), 1 host(s)" in said and "estimated to fit: needs about" in said
    assert "nothing was compiled for a GPU, and nothing was measured" in said
    assert "Bounds are bounds" not in said


def test_what_does_not_fit_is_followed_by_settings_in_the_presets_order():
    room = parts(accumulation=2)["total"]
    answer = search.compare(small(), [H100], limit=room)
    (row,), tried = answer["plans"], answer["tried"]["gpu:h100"]
    assert not row["fits"] and "bounds_seconds" not in row and row["limit_bytes"] == room
    assert [r["changes"] for r in tried] == [{"accumulation": 2}] and tried[0]["fits"]
    said = text.text(answer)
    assert "estimated not to fit: needs about" in said and "tried by estimating" in said
    assert "gpu:h100: is estimated to fit with --config.accumulation=2" in said
    assert "nothing was compiled for a GPU" in said


def test_recomputing_comes_before_micro_batches_of_few_images():
    room = parts(accumulation=2, model__remat=True)["total"]
    tried = search.compare(small(), [H100], limit=room)["tried"]["gpu:h100"]
    assert [r["changes"] for r in tried] == [
        {"accumulation": 2},
        {"model.remat": True},
        {"accumulation": 2, "model.remat": True},
    ]
    assert [r["fits"] for r in tried] == [False, False, True]


def test_no_larger_micro_batches_are_tried_than_the_configs_own():
    c = small(accumulation=256, model__remat=True)
    tried = search.compare(c, [H100], limit=GIB)["tried"]["gpu:h100"]  # Less than the reserve.
    assert [r["changes"] for r in tried] == [
        {"model.remat": False},
        {"accumulation": 512, "model.remat": False},
        {"accumulation": 512},
    ]
    said = text.text(search.compare(c, [H100], limit=GIB))
    assert "nothing that was tried fits; take GPUs with more memory, several with" in said


def run(capsys, *args):
    code = cli.main(["plan", "--config=configs/biggan128.py", "--config.batch_size=512", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line(capsys):
    code, out, err = run(capsys, "--slice=gpu:h100", "--json", *ARGS)
    (row,) = json.loads(out)["plans"]
    assert code == 0 and err == "estimating biggan128 for gpu:h100 ...\n"
    assert {"estimated", "memory", "largest_images_a_device", "flops_needed", "peak_flops"} <= {
        *row
    }
    assert set(row["memory"]) == (
        {"state", "batch", "gradients", "activations", "reserve", "total"}
    )
    assert cli.main(["plan", "gpu:h100", "--config=configs/biggan128.py", *ARGS]) == 0
    assert "biggan128 on gpu:h100: 1 h100 GPU(s)" in capsys.readouterr().out


def test_several_gpus_are_a_table(capsys):
    code, out, _ = run(capsys, "--slices=gpu:h100,gpu:h100x8", *ARGS)
    lines = out.splitlines()
    assert code == 0 and lines[1].split()[:3] == ["slice", "by", "devices"]
    assert lines[2].split()[:4] == ["gpu:h100", "estimate", "1", "512"]
    assert lines[3].split()[:4] == ["gpu:h100x8", "estimate", "8", "64"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--slice=gpu:h100", "--quick"], "--quick: gpu:h100 is estimated, not compiled"),
        (["--slices=v3-8,gpu:h100", "--sweep"], "--sweep: gpu:h100 is estimated, with a bound by"),
        (["gpu:h100", "--slice=gpu:h100"], "--slice: name one, or several"),
        (["--slice=gpu:h100x3"], "batch_size=512: must be a multiple"),
        (["gpu:h100", "--config.preset=gpu:h100"], "preset='gpu:h100': biggan plan tries settings"),
        (["--slices=gpu:a100,gpu:h100", "--price-per-chip-hour=1"], "of a100 and h100 chips alike"),
    ],
)
def test_exit_code_2(capsys, args, said):
    code, _, err = run(capsys, *args, *ARGS)
    assert code == 2 and said in err
    assert err.startswith("biggan plan: ") and err.count("\n") == 1


def test_a_plan_that_does_not_fit_is_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(preset, "settings", lambda *_: [])
    code, out, _ = run(capsys, "--slice=gpu:h100", "--hbm-limit=0.5", *ARGS)
    assert code == 2 and "estimated not to fit" in out and "of 0.50 GiB" in out
    assert "gpu:h100: there is no smaller setting to try" in out


def test_tpus_and_gpus_stand_in_one_table(monkeypatch):
    facts = {
        **{"fits": True, "quick": False, "parameters": {"G": 1, "D": 2}, "memory": {"peak": GIB}},
        **{"flops": 1e12, "bytes": 1e9, "roofline_seconds": None, "cycles": {}},
        **{"collectives": {}, "unknown_loops": 0},
    }
    monkeypatch.setattr(compile_lib, "facts", lambda *_: facts)
    monkeypatch.setattr(compile_lib, "check", lambda where: None)
    said = text.text(search.compare(small(), [H100, slices.find("v3-8")]))
    rows = [line.split()[:2] for line in said.splitlines()[2:4]]
    assert rows == [["gpu:h100", "estimate"], ["v3-8", "compile"]]
    assert "GPU rows are estimates" in said and "Bounds are bounds" in said


def test_a_sentence_for_who_would_compile_for_gpus():
    gpu.check([H100], quick=False, sweep=False)
    with pytest.raises(ConfigError, match="biggan plan estimates instead"):
        compile_lib.check(H100)
