"""BigGAN-deep at 32 px on the embedded handwritten digits.

Command:   biggan train --config=configs/digits_deep.py --workdir=runs/digits_deep
Hardware:  2 CPU cores, about 20 minutes.
Expected:  label accuracy above 0.95 from step 2,250 on (docs/performance.md), measured by
           python -m benchmarks.digits_quality runs/digits_deep --json
"""

from biggan_jax import config as config_lib


def get_config():
    c = config_lib.default()
    c.name = "digits_deep"
    c.update(num_steps=3000, batch_size=32, keep_checkpoints=20)
    c.update(log_every=25, checkpoint_every=250, sample_every=250)
    c.data.update(name="digits", split="train")
    c.model.update(arch="biggan_deep", resolution=32, num_classes=10, g_ch=16, d_ch=16)
    c.model.update(z_dim=32, shared_dim=32, g_attention=(), d_attention=())
    c.optim.update(g_lr=8e-4, d_lr=4e-4, eps=1e-5, g_ortho=0.0, warmup=1500)
    c.ema.update(decay=0.998, start=200)
    return c
