"""BigGAN-deep at 256 px on ImageNet (Brock et al. 2018, table 2 and appendix B).

Command:   biggan train --config=configs/biggan_deep256.py --workdir=PATH
Variant:   configs/biggan_deep256.py:released has the 128-channel RGB head and the condition order
           of the released generators, 55.9 M parameters.
Hardware:  the paper: a TPU v3 pod slice of 256 cores, 24 to 48 hours. 8 images a core.
Expected:  FID 6.9 +- 0.2, IS 171.4 +- 2 without truncation: the paper's scores, not ours.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "biggan_deep256"
    c.model.update(arch="biggan_deep", resolution=256, g_ch=128, d_ch=128, z_dim=128)
    c.optim.update(g_lr=2.5e-5, d_lr=2.5e-5)
    config_lib.for_pods(c)
    if config_lib.pick_variant(variant, ("released",)):
        c.model.update(rgb_channels=128, condition_order="z_first")
    return c
