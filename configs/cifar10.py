"""BigGAN at 32 px on CIFAR-10.

Command:   biggan train --config=configs/cifar10.py --workdir=runs/cifar10
Variant:   configs/cifar10.py:author_pytorch is the author's CIFAR script: 64 channels, no shared
           embedding, z into the first layer alone, batch 50, 4 D steps, learning rates 2e-4,
           weights N(0, 0.02). It fits a GPU of 8 GB.
Hardware:  8 accelerators; on one, --config.accumulation=8 (BN then sees 256 images).
Expected:  IS 9.22, FID 14.73 with the settings of the paper's table 1, row 8, which
           these are: the paper's scores, not ours.
Not run by us: CIFAR-10 has to be downloaded.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "cifar10"
    c.num_steps = 100_000
    c.data.name = "cifar10"
    c.model.update(resolution=32, num_classes=10, z_dim=80, g_attention=(), d_attention=())
    if config_lib.pick_variant(variant, ("author_pytorch",)):
        c.update(num_steps=125_000, batch_size=50, d_steps=4)  # 500 epochs of 50,000 images.
        c.model.update(g_ch=64, d_ch=64, z_dim=128, init="n02")
        c.model.update(shared_embedding=False, hierarchical_z=False, bn_eps=1e-5, sn_eps=1e-8)
        c.optim.update(g_lr=2e-4, d_lr=2e-4, g_ortho=0.0)
        c.ema.start = 1000
    return c
