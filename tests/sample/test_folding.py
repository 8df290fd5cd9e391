import functools

import jax
import numpy as np
import pytest

from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout
from biggan_jax.models import networks
from biggan_jax.sample import folding

SMALL = {"resolution": 16, "num_classes": 5, "g_ch": 8, "d_ch": 8, "shared_dim": 8, "z_dim": 12}
SMALL |= {"g_attention": (), "d_attention": ()}


@pytest.mark.parametrize(
    "model",
    [
        {"g_attention": (8,)},
        {"hierarchical_z": False, "shared_embedding": False},
        {"arch": "biggan_deep", "condition_order": "z_first"},
        {"sigma_rule": "stored"},
        {"compare_gan": True, "sigma_rule": "shorter_side", "shared_dim": 12},
    ],
    ids=str,
)
def test_a_folded_generator_makes_the_same_images_and_mixes_embeddings(model):
    resolved = bundle_lib.resolve_model(SMALL | model)
    g, _ = networks.build({"model": resolved})
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(4, 12)).astype(np.float32), np.array([0, 3, 4, 3])
    start = jax.jit(functools.partial(g.init, train=False))(jax.random.key(0), z, labels)
    flat = {
        k: np.abs(v + 0.3 * rng.normal(size=v.shape)).astype(np.float32)
        if "/var" in k
        else np.float32(v + 0.1 * rng.normal(size=v.shape))
        for k, v in layout.flatten(start).items()
    }
    variables = layout.unflatten(flat)
    call = jax.jit(functools.partial(g.apply, train=False))
    want = call(variables, z, labels)
    params = folding.fold(g, variables)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, variables["params"])
    folded = jax.jit(functools.partial(folding.apply, g))
    one_hot = np.eye(5, dtype=np.float32)
    got = folded(params, variables["batch_stats"], z, one_hot[labels])
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.std(want) > 0.05
    # The oracle of a mix: a model whose table rows are the mixed ones.
    mix = rng.dirichlet(np.ones(5), 5).astype(np.float32)
    mixed = layout.unflatten(
        {k: mix @ v if k.endswith("embedding") else v for k, v in flat.items()}
    )
    want = call(mixed, z, np.arange(4))
    got = folded(params, variables["batch_stats"], z, mix[:4])
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(got - folded(params, variables["batch_stats"], z, one_hot[:4])).max() > 1e-3
