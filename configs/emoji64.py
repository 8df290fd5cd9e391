"""BigGAN at 64 px on emoji, or on any small folder of pictures: a start for one's own data.

Data:      docs/data.md, "Emoji": 1,854 pictures in 9 classes, from two packages.
           biggan prepare --dataset=folder:emoji --resolution=64 --data-dir=DIR
Command:   biggan train --config=configs/emoji64.py --config.data.dir=DIR --workdir=PATH
Hardware:  2 CPU cores for a look; one GPU for more steps and width.
Expected:  nobody has published a score. After 200 steps colours and rough shapes of each class
           (docs/data.md shows what it looked like); the rest takes thousands.
"""

from biggan_jax import config as config_lib


def get_config():
    c = config_lib.default()
    c.name = "emoji64"
    c.update(num_steps=200, batch_size=32, d_steps=1, keep_checkpoints=3)
    c.update(log_every=10, checkpoint_every=100, sample_every=100)
    c.data.update(name="biggan_emoji/64", flip=True)
    c.model.update(resolution=64, num_classes=9, g_ch=16, d_ch=16, z_dim=100, shared_dim=32)
    c.model.update(g_attention=(32,), d_attention=(32,))
    c.optim.update(g_lr=5e-4, d_lr=5e-4, eps=1e-6, g_ortho=0.0, warmup=50)
    c.ema.update(decay=0.98, start=20)
    return c
