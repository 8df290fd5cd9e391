"""BigGAN at 64 px on ImageNet: the paper's recipe on the author's 64-px tables.

Command:   biggan train --config=configs/imagenet64.py --workdir=PATH
Variant:   `author_pytorch` has the recipe of the author's scripts.
Hardware:  a TPU v3-32 or more: 64 images a core.
Expected:  the paper has no 64-px model, so there is no score to meet.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "imagenet64"
    c.model.update(resolution=64, z_dim=100, g_attention=(32,), d_attention=(32,))
    if config_lib.pick_variant(variant, ("author_pytorch",)):
        config_lib.author_pytorch_recipe(c)
    return c
