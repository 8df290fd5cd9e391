"""BigGAN at 128 px on ImageNet (Brock et al. 2018, table 1, row 8).

Command:   biggan train --config=configs/biggan128.py --workdir=PATH
Variant:   configs/biggan128.py:author_pytorch is the recipe of the author's PyTorch scripts: 8
           micro-batches of 256, BN over 32 images, one D step, learning rates 1e-4 / 4e-4, no
           ortho regularisation.
Hardware:  the paper: a TPU v3 pod slice of 128 cores, 24 to 48 hours. 16 images a core.
Expected:  FID 8.51 +- 0.32, IS 99.3 +- 2.1 before collapse at about 165k steps: the paper's
           scores, not ours. The author's PyTorch recipe: IS 97.4, at about 138k steps.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()  # The default is this model with the paper's recipe.
    c.name = "biggan128"
    if config_lib.pick_variant(variant, ("author_pytorch",)):
        config_lib.author_pytorch_recipe(c)
    else:
        config_lib.for_pods(c)
    return c
