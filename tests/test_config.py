import glob
import json

import jax
import pytest

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.gan import state as state_lib


def resolved(devices=1, **changes):
    c = config_lib.default()
    for key, value in changes.items():
        config_lib.override(c, key.replace("__", "."), str(value))
    return config_lib.resolve(c, devices)


@pytest.mark.parametrize(
    ("key", "text", "want"),
    [
        ("batch_size", "64", 64),
        ("model.g_attention", "32,64", (32, 64)),
        ("model.g_attention", "32", (32,)),
        ("model.g_attention", "()", ()),
        ("data.classes", "3,5", (3, 5)),
        ("init_from", "8", "8"),
        ("optim.g_lr", "1", 1.0),
        ("optim.g_lr", "1e-4", 1e-4),
        ("data.name", "10", "10"),
        ("data.dir", "some/folder", "some/folder"),
        ("device_count", "4", 4),
        ("model.remat", "true", True),
        ("model.remat", "False", False),
    ],
)
def test_overrides_keep_the_type(key, text, want):
    c = config_lib.default()
    config_lib.override(c, key, text)
    got = config_lib.flatten(c)[key]
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("batch_sise", "1", "unknown key; did you mean 'batch_size'?"),
        ("model.g_chh", "1", "unknown key; did you mean 'model.g_ch'?"),
        ("batch_size", "1.5", "'1.5' is not a whole number."),
        ("batch_size", "many", "'many' is not a whole number."),
        ("optim.g_lr", "fast", "'fast' is not a number."),
        ("model.remat", "1", "'1' is not true or false."),
        ("model.g_attention", "'a'", "is not a list of whole numbers"),
        ("model", "1", "unknown key"),
        ("device_count", "two", "'two' is not a whole number."),
    ],
)
def test_bad_overrides_are_named(key, text, message):
    with pytest.raises(ConfigError) as e:
        config_lib.override(config_lib.default(), key, text)
    assert message in str(e.value) and key in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 100, "device_count": 8}, "batch_size=100: must be a multiple of"),
        ({"batch_size": 100, "device_count": 8}, "nearest is 96"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        (
            {"model__resolution": 96},
            "model.resolution=96: must be one of 16, 32, 64, 128, 256, 512",
        ),
        ({"model__resolution": 96}, "nearest is 64"),
        ({"model__z_dim": 128}, "model.z_dim=128: must be a multiple of 6"),
        ({"model__z_dim": 128}, "nearest is 126"),
        ({"model__g_attention": 48}, "48 is not the size of a block's output"),
        ({"model__d_attention": 128}, "model.d_attention=(128,)"),
        ({"model__dtype": "float16"}, "model.dtype='float16': must be one of float32, bfloat16"),
        ({"model__init": "ortogonal"}, "did you mean 'orthogonal'?"),
        ({"model__shared_embedding": False}, "model.hierarchical_z=True: needs"),
        ({"model__bn_group_size": 3}, "model.bn_group_size=3: must divide"),
        ({"optim__g_lr": -1.0}, "optim.g_lr=-1.0: must be a number above 0"),
        ({"optim__beta2": 1.0}, "optim.beta2=1.0"),
        ({"ema__start": -1}, "ema.start=-1"),
        ({"device_count": 0}, "device_count=0: must be at least 1"),
        ({"sample__classes": 1001}, "sample.classes=1001: must be at most model.num_classes"),
        ({"sample__standing_batch": 3, "device_count": 2}, "sample.standing_batch=3"),
        ({"sample__standing_batch": 0}, "sample.standing_batch=0"),
        (
            {"optim__freeze_d_blocks": -1},
            "optim.freeze_d_blocks=-1: must be a number of at least 0",
        ),
        ({"optim__freeze_d_blocks": 7}, "optim.freeze_d_blocks=7: this D has 6 blocks."),
        (
            {"optim__freeze_d_blocks": 11, "model__arch": "biggan_deep"},
            "optim.freeze_d_blocks=11: this D has 10 blocks.",
        ),
        ({"keep_every": -1}, "keep_every=-1: must be a number of at least 0"),
        ({"keep_best": 2}, "keep_best=2: needs best_metric, the name of one."),
        ({"best_is": "low"}, "best_is='low': must be one of lowest, highest; did you mean"),
        ({"seed": 2**31}, "seed=2147483648: must be below 2**31"),
        ({"data__fraction_seed": 2**31}, "data.fraction_seed=2147483648: must be below 2**31"),
        ({"data__fraction_seed": -1}, "data.fraction_seed=-1: must be a number of at least 0"),
        ({"data__fraction": 0.0}, "data.fraction=0.0: must be above 0 and at most 1"),
        ({"data__fraction": 1.5}, "data.fraction=1.5: must be above 0 and at most 1"),
        ({"data__crop": "zoom"}, "data.crop='zoom': must be one of center, random_zoom"),
    ],
)
def test_impossible_configs_are_named(changes, message):
    with pytest.raises(ConfigError) as e:
        resolved(**changes)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_resolving_leaves_nothing_open_and_can_be_read_back():
    c = resolved(devices=8, accumulation=4)
    assert (c.device_count, c.model.bn_group_size, c.sample.standing_batch) == (8, 512, 512)
    assert [k for k, v in config_lib.flatten(c).items() if v is None] == ["data.dir"]
    text = config_lib.to_json(c)
    assert config_lib.to_json(config_lib.from_json(text)) == text
    assert json.loads(text)["model"]["g_attention"] == [64]
    with pytest.raises(AttributeError):
        c.batch_size = 1


def test_the_config_of_a_run_of_before_some_keys_is_read():
    text = config_lib.to_json(resolved())
    added = ("keep_every", "keep_best", "best_metric", "best_is")
    older = json.dumps({k: v for k, v in json.loads(text).items() if k not in added})
    assert config_lib.to_json(config_lib.from_json(older)) == text


def test_every_config_file_resolves_as_does_its_small_version():
    files = sorted(glob.glob("configs/*.py"))
    assert len(files) >= 7
    for file in files:
        config_lib.resolve(config_lib.load(file), 1)
        small = config_lib.resolve(config_lib.shrink(config_lib.load(file)), 8)
        jax.eval_shape(lambda small=small: state_lib.init(small))


AUTHOR = {
    "parallel": "data",
    "model.dtype": "float32",
    "batch_size": 2048,
    "accumulation": 8,
    "d_steps": 1,
    "optim.g_lr": 1e-4,
    "optim.d_lr": 4e-4,
    "optim.beta1": 0.0,
    "optim.eps": 1e-6,
    "optim.g_ortho": 0.0,
    "ema.start": 20_000,
    "model.bn_eps": 1e-5,
    "model.sn_eps": 1e-6,
    "model.bn_group_size": 32,
}
PAPER = {
    "batch_size": 2048,
    "accumulation": 1,
    "d_steps": 2,
    "optim.g_lr": 5e-5,
    "optim.d_lr": 2e-4,
    "optim.beta1": 0.0,
    "optim.beta2": 0.999,
    "optim.g_ortho": 1e-4,
    "ema.decay": 0.9999,
    "model.bn_eps": 1e-4,
    "model.sn_eps": 1e-4,
    "model.bn_group_size": 2048,
    "model.init": "orthogonal",
}
CIFAR_SCRIPT = {
    "batch_size": 50,
    "d_steps": 4,
    "optim.g_lr": 2e-4,
    "optim.d_lr": 2e-4,
    "model.init": "n02",
    "model.z_dim": 128,
    "model.shared_embedding": False,
    "ema.start": 1000,
}
SAGAN = {
    "batch_size": 256,
    "d_steps": 1,
    "optim.g_lr": 1e-4,
    "optim.d_lr": 4e-4,
    "model.g_ch": 64,
    "model.shared_embedding": False,
    "model.hierarchical_z": False,
    "model.init": "xavier",
}


POD = {"parallel": "fsdp", "model.dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("file", "want"),
    [
        ("biggan128.py", PAPER | POD),
        ("biggan_deep128.py", POD),
        ("biggan_deep256.py", POD),
        ("biggan_deep512.py:released", POD),
        ("biggan256.py", PAPER | POD | {"model.z_dim": 140, "model.g_attention": (128,)}),
        ("biggan512.py", PAPER | POD | {"model.z_dim": 160, "model.g_attention": (64,)}),
        ("imagenet64.py", PAPER),
        ("cifar10.py", PAPER),
        ("sagan128.py", SAGAN),
        ("biggan128.py:author_pytorch", AUTHOR),
        ("biggan256.py:author_pytorch", AUTHOR | {"model.g_attention": (64,)}),
        ("biggan512.py:author_pytorch", AUTHOR),
        ("imagenet64.py:author_pytorch", AUTHOR),
        ("biggan256.py:attention64", PAPER | {"model.g_attention": (64,)}),
        ("biggan512.py:z128", PAPER | {"model.z_dim": 128}),
        ("cifar10.py:author_pytorch", CIFAR_SCRIPT),
    ],
)
def test_recipes(file, want):
    """Spec sections 3.3, 7.2 and 11.3."""
    c = config_lib.flatten(config_lib.resolve(config_lib.load(f"configs/{file}"), 1))
    assert {key: c[key] for key in want} == want


def test_missing_files_and_variants_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'configs/digits\.py'\?"):
        config_lib.load("configs/digit.py")
    with pytest.raises(ConfigError, match="has no variants"):
        config_lib.load("configs/sagan128.py:big")
    with pytest.raises(ConfigError, match=r"unknown variant 'author_pytorh'.*did you mean"):
        config_lib.load("configs/biggan128.py:author_pytorh")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="has no function get_config"):
        config_lib.load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.model.gch = 64", "g_ch"),
        ("c.optim.update(glr=3.0)", "g_lr"),
        ("c.batch_size = 'many'", "batch_size"),
        ("return 1 +", "invalid syntax"),
    ],
)
def test_what_a_config_file_gets_wrong_is_one_sentence(tmp_path, body, message):
    file = tmp_path / "wrong.py"
    head = "from biggan_jax import config\ndef get_config():\n    c = config.default()\n    "
    file.write_text(f"{head}{body}\n    return c\n")
    with pytest.raises(ConfigError) as e:
        config_lib.load(str(file))
    assert message in str(e.value) and "wrong.py" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "no object"), ("{}", "has no 'accumulation'"), ("{", "not JSON")]
)
def test_a_damaged_config_json_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(text)
