"""SAGAN at 128 px on ImageNet: the paper's baseline (Brock et al. 2018, table 1, row 1).

Command:   biggan train --config=configs/sagan128.py --workdir=PATH
What makes it SAGAN: batch 256, 64 channels, a class table a BN, z into the first layer alone, one D
           step, learning rates 1e-4 / 4e-4, no ortho regularisation.
Hardware:  8 accelerators of 16 GB: 32 images each.
Expected:  FID 18.65, IS 52.52 at 1M steps: the paper's scores, not ours.
Not run by us: this needs accelerators and ImageNet.
"""

from biggan_jax import config as config_lib


def get_config():
    c = config_lib.default()
    c.name = "sagan128"
    c.update(batch_size=256, d_steps=1, num_steps=1_000_000)
    c.model.update(g_ch=64, d_ch=64, z_dim=128, shared_embedding=False, hierarchical_z=False)
    c.model.update(init="xavier", bn_eps=1e-5, sn_eps=1e-6)
    c.optim.update(g_lr=1e-4, d_lr=4e-4, g_ortho=0.0)
    c.ema.start = 2000
    return c
