import pytest

from biggan_jax import config as config_lib


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the digits are prepared, once a test run."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def tiny(data_dir):
    """The demo's config, made small."""
    config = config_lib.shrink(config_lib.load("configs/digits.py"))
    config.device_count = 1
    config.data.dir = data_dir
    return config
