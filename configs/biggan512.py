"""BigGAN at 512 px on ImageNet (Brock et al. 2018).

Command:   biggan train --config=configs/biggan512.py --workdir=PATH
Variants:  `z128` is the size of the released weights (16 a slot); the paper says 160 (20 a slot).
           `author_pytorch` has the recipe of the author's scripts, which stop at 256 px.
Hardware:  the paper: a TPU v3 pod slice of 512 cores, 24 to 48 hours. 4 images a core.
Expected:  FID 8.1, IS 144.2 without truncation: the paper's scores, not ours.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "biggan512"
    c.model.update(resolution=512, z_dim=160)
    config_lib.pick_variant(variant, ("z128", "author_pytorch"))
    if variant == "z128":
        c.model.z_dim = 128
    if variant == "author_pytorch":
        config_lib.author_pytorch_recipe(c)
    else:
        config_lib.for_pods(c)
    return c
