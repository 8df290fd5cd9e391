"""BigGAN at 32 px on CIFAR-10.

Command:   biggan train --config=configs/cifar10.py --workdir=runs/cifar10
Variant:   configs/cifar10.py:author_pytorch is the author's CIFAR script: no shared embedding, z
           into the first layer alone, batch 50, 4 D steps, learning rates 2e-4, weights N(0, 0.02).
Hardware:  one GPU of 8 GB.
Expected:  the paper: IS 9.22, FID 14.73 with the settings of its ImageNet model: not ours.
Not run by us: CIFAR-10 has to be downloaded.
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "cifar10"
    c.update(num_steps=100_000, batch_size=64)
    c.data.update(name="cifar10", flip=True)
    c.model.update(resolution=32, num_classes=10, g_ch=64, d_ch=64, z_dim=80)
    c.model.update(g_attention=(), d_attention=())
    c.optim.update(g_lr=2e-4, d_lr=2e-4, g_ortho=0.0)
    c.d_steps = 4
    c.ema.start = 1000
    if config_lib.pick_variant(variant, ("author_pytorch",)):
        c.update(num_steps=500 * 50_000 // (50 * 4), batch_size=50)
        c.data.flip = False
        c.model.update(z_dim=128, shared_embedding=False, hierarchical_z=False, init="n02")
        c.model.update(bn_eps=1e-5, sn_eps=1e-6)
        c.optim.eps = 1e-8
    return c
