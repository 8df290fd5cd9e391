import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biggan_jax.train.digest import digest

TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.int32(7)}}


def test_order_container_and_empty_nodes_do_not_count():
    other = {"b": {"c": np.int32(7), "none": None}, "a": jnp.asarray(TREE["a"]), "empty": {}}
    assert digest(TREE) == digest(other)
    assert digest(TREE) == digest(TREE | {"a": np.asfortranarray(TREE["a"])})


def test_known_value():
    # SHA-256 of b"x int8 (2,)\n\x01\x02", computed by another program.
    wanted = "9331577e432a63685adc4664a7cdc88e6a12d26ca3c6bbd91d9ec3d51fa8b1ef"
    assert digest({"x": np.array([1, 2], np.int8)}) == wanted


@pytest.mark.parametrize(
    "changed",
    [
        {"a": TREE["a"], "b": {"d": np.int32(7)}},
        {"a": TREE["a"], "b": {"c": np.int32(8)}},
        {"a": TREE["a"], "b": {"c": np.int64(7)}},
        {"a": TREE["a"].reshape(3, 2), "b": TREE["b"]},
        {"a": np.nextafter(TREE["a"], 10), "b": TREE["b"]},
        {"a": TREE["a"]},
    ],
)
def test_path_value_dtype_shape_and_last_bit_count(changed):
    assert digest(changed) != digest(TREE)


def test_signs_of_zero_and_bfloat16_count():
    zeros = np.zeros(3, np.float32)
    assert digest([zeros]) != digest([-zeros])
    half = jnp.ones(3, jnp.bfloat16)
    assert digest([half]) == digest([half + 0]) != digest([half * 2])


def test_sharding_does_not_count():
    x = np.arange(16, dtype=np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    for spec in (PartitionSpec(), PartitionSpec("data")):
        assert digest([jax.device_put(x, NamedSharding(mesh, spec))]) == digest([x])


def test_refuses_what_is_not_an_array():
    with pytest.raises(TypeError, match="a/0: ellipsis"):
        digest({"a": [...]})
