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
    shapes, _ = layout.abstract(resolved)
    flat = {}
    for place, shape in shapes.items():
        noise = rng.normal(size=shape.shape).astype(np.float32)
        flat[place] = np.exp(noise / 4) if place.endswith("/var") else noise
    for place in [place for place in flat if place.endswith("/v")]:
        # Vectors of one iteration: random ones give no sigma to divide by.
        kernel = flat[place.replace("spectral", "params").removesuffix("v") + "kernel"]
        matrix, u = kernel.reshape(-1, kernel.shape[-1]), place.removesuffix("v") + "u"
        v = flat[u] @ matrix.T
        flat[place] = v / np.linalg.norm(v)
        flat[u] = flat[place] @ matrix / np.linalg.norm(flat[place] @ matrix)
    variables = layout.unflatten(flat)
    quickly = {"xla_backend_optimization_level": 0}  # Compiling takes longest here.
    call = jax.jit(functools.partial(g.apply, train=False), compiler_options=quickly)
    want = call(variables, z, labels)
    params = folding.fold(g, variables)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, variables["params"])
    folded = jax.jit(functools.partial(folding.apply, g), compiler_options=quickly)
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
