"""BigGAN at 16 px on the embedded handwritten digits: the demo.

Command:   make demo, or biggan train --config=configs/digits.py --workdir=runs/digits
Hardware:  2 CPU cores, 6 minutes. The 1,437 training images ship inside scikit-learn.
Expected:  see docs/performance.md: label accuracy, coverage and copies, measured by
           python -m benchmarks.digits_quality runs/digits --json
Variants:  `four` learns 3, 5, 8 and 9 alone; with --config.init_from=runs/digits it shows
           fine-tuning (docs/performance.md).
"""

from biggan_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.default()
    c.name = "digits"
    c.update(num_steps=1700, batch_size=32, keep_checkpoints=3)
    c.update(log_every=25, checkpoint_every=200, sample_every=200, watch_every=25)
    c.watch.update(margin=200, diversity_after=50)
    c.data.update(name="digits", split="train")
    c.model.update(resolution=16, num_classes=10, g_ch=16, d_ch=16, z_dim=48, shared_dim=32)
    c.model.update(g_attention=(), d_attention=())
    # Rates twenty times the paper's learn in minutes. The warm-up keeps the start from being chaos.
    c.optim.update(g_lr=1.2e-3, d_lr=1.2e-3, eps=1e-5, g_ortho=0.0, warmup=1500)
    c.ema.update(decay=0.998, start=200)
    if config_lib.pick_variant(variant, ("four",)):
        c.update(name="digits_four", num_steps=400)
        c.optim.warmup = 200
        c.data.classes = (3, 5, 8, 9)
        c.model.num_classes = 4
    return c
