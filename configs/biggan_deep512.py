"""BigGAN-deep at 512 px on ImageNet (Brock et al. 2018, table 2 and appendix B).

Command:   biggan train --config=configs/biggan_deep512.py --workdir=PATH
Variant:   configs/biggan_deep512.py:released has the 128-channel RGB head and the condition order
           of the released generators, 56.2 M parameters.
Hardware:  the paper: a TPU v3 pod slice of 512 cores, 24 to 48 hours. 4 images a core.
Expected:  FID 7.5, IS 152.8 without truncation: the paper's scores, not ours.
Not run by us: this needs a pod and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "biggan_deep512"
    c.model.update(arch="biggan_deep", resolution=512, g_ch=128, d_ch=128, z_dim=128)
    c.optim.update(g_lr=2.5e-5, d_lr=2.5e-5)
    config_lib.for_pods(c)
    if config_lib.pick_variant(variant, ("released",)):
        c.model.update(rgb_channels=128, condition_order="z_first")
    return c
