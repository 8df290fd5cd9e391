"""BigGAN at 256 px on ImageNet (Brock et al. 2018).

Command:   biggan train --config=configs/biggan256.py --workdir=PATH
Variants:  `attention64` puts G's attention at 64x64, as the author's PyTorch code does by default;
           the paper and the released weights have it at 128x128. `author_pytorch` is that with
           the recipe of the author's scripts.
Hardware:  the paper: a TPU v3 pod slice of 256 cores, 24 to 48 hours. 8 images a core.
Expected:  FID 8.7 +- 0.1, IS 142.3 +- 2 without truncation: the paper's scores, not ours.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "biggan256"
    c.model.update(resolution=256, z_dim=140, g_attention=(128,), d_attention=(64,))
    if config_lib.pick_variant(variant, ("attention64", "author_pytorch")):
        c.model.g_attention = (64,)
    if variant == "author_pytorch":
        config_lib.author_pytorch_recipe(c)
    else:
        config_lib.for_pods(c)
    return c
