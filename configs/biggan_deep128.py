"""BigGAN-deep at 128 px on ImageNet (Brock et al. 2018, table 2 and appendix B).

Command:   biggan train --config=configs/biggan_deep128.py --workdir=PATH
Variant:   configs/biggan_deep128.py:released has the 128-channel RGB head and the condition order
           of the released generators, whose 50.4 M parameters the paper counts.
Hardware:  the paper: a TPU v3 pod slice of 128 cores, 24 to 48 hours. 16 images a core.
Expected:  FID 5.7 +- 0.3, IS 124.5 +- 2 without truncation: the paper's scores, not ours.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()  # The default's recipe is the paper's for this model too.
    c.name = "biggan_deep128"
    c.model.update(arch="biggan_deep", g_ch=128, d_ch=128, z_dim=128)
    config_lib.for_pods(c)
    if config_lib.pick_variant(variant, ("released",)):
        c.model.update(rgb_channels=128, condition_order="z_first")
    return c
