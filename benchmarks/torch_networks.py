"""BigGAN's networks and step in plain PyTorch: what the same shapes cost there.

Own code after Brock et al. 2018, appendix B, by the tables of `biggan_jax.models.biggan`, and like
our step: one joint pass of D, a fresh power iteration a pass, equation 3 on G, Adam, an average of
G. Weights are random; only times are compared.
"""

import torch
from torch import nn
from torch.nn import functional as F

from biggan_jax.models import biggan


class _Spectral:
    """A weight divided by its largest singular value, by one power iteration a pass."""

    def spectral(self):
        w = self.weight.reshape(len(self.weight), -1)
        with torch.no_grad():
            v = F.normalize(self.u @ w, eps=1e-4)
            u = F.normalize(v @ w.T, eps=1e-4)
            if self.training:
                self.u.copy_(u)
        return self.weight / (v @ w.T @ u.T).squeeze()

    def make_u(self):
        self.register_buffer("u", torch.randn(1, len(self.weight)))
        return self


class Conv(_Spectral, nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.spectral(), self.bias, padding=self.padding)


class Dense(_Spectral, nn.Linear):
    def forward(self, x):
        return F.linear(x, self.spectral(), self.bias)


class Table(_Spectral, nn.Embedding):
    def forward(self, labels):
        return F.embedding(labels, self.spectral())


def conv(cin, cout, size=3, bias=True):
    return Conv(cin, cout, size, padding=size // 2, bias=bias).make_u()


def dense(cin, cout, bias=True):
    return Dense(cin, cout, bias=bias).make_u()


class ConditionalNorm(nn.Module):
    def __init__(self, features, condition):
        super().__init__()
        self.gain, self.bias = (dense(condition, features, bias=False) for _ in range(2))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x, condition):
        x = F.batch_norm(x, self.mean, self.var, None, None, self.training, 0.1, 1e-4)
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        return x * gain[:, :, None, None] + bias[:, :, None, None]


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.theta, self.phi = (conv(c, c // 8, 1, bias=False) for _ in range(2))
        self.g, self.o = conv(c, c // 2, 1, bias=False), conv(c // 2, c, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        b, c, h, w = x.shape
        theta = self.theta(x).reshape(b, c // 8, h * w)
        phi = F.max_pool2d(self.phi(x), 2).reshape(b, c // 8, h * w // 4)
        g = F.max_pool2d(self.g(x), 2).reshape(b, c // 2, h * w // 4)
        weights = torch.softmax(theta.transpose(1, 2) @ phi, -1)
        mixed = (g @ weights.transpose(1, 2)).reshape(b, c // 2, h, w)
        return self.gamma * self.o(mixed) + x


class GBlock(nn.Module):
    def __init__(self, cin, cout, condition):
        super().__init__()
        self.bn1, self.bn2 = ConditionalNorm(cin, condition), ConditionalNorm(cout, condition)
        self.conv1, self.conv2 = conv(cin, cout), conv(cout, cout)
        self.shortcut = conv(cin, cout, 1)

    def forward(self, x, condition):
        h = F.relu(self.bn1(x, condition))
        h = self.conv1(F.interpolate(h, scale_factor=2))
        h = self.conv2(F.relu(self.bn2(h, condition)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class Generator(nn.Module):
    def __init__(self, model):
        super().__init__()
        first, *widths = (m * model.g_ch for m in biggan.G_CHANNELS[model.resolution])
        self.slot = model.z_dim // (len(widths) + 1)
        self.shared = nn.Embedding(model.num_classes, model.shared_dim)
        self.linear = dense(self.slot, first * 16)
        condition = model.shared_dim + self.slot
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleDict()
        side, before = 4, first
        for width in widths:
            self.blocks.append(GBlock(before, width, condition))
            before, side = width, 2 * side
            if side in model.g_attention:
                self.attentions[str(side)] = Attention(width)
        self.bn, self.out = nn.BatchNorm2d(before, eps=1e-4), conv(before, 3)

    def forward(self, z, labels):
        chunks, shared = z.split(self.slot, 1), self.shared(labels)
        h = self.linear(chunks[0]).reshape(len(z), -1, 4, 4)
        for block, chunk in zip(self.blocks, chunks[1:], strict=True):
            h = block(h, torch.cat([shared, chunk], 1))
            if str(h.shape[-1]) in self.attentions:
                h = self.attentions[str(h.shape[-1])](h)
        return torch.tanh(self.out(F.relu(self.bn(h))))


class DBlock(nn.Module):
    def __init__(self, cin, cout, down, first):
        super().__init__()
        self.down, self.first = down, first
        self.conv1, self.conv2 = conv(cin, cout), conv(cout, cout)
        self.shortcut = conv(cin, cout, 1) if down or cin != cout else None

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + x


class Discriminator(nn.Module):
    def __init__(self, model):
        super().__init__()
        multiples, halvings = biggan.D_CHANNELS[model.resolution]
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleDict()
        before, side = 3, model.resolution
        for i, multiple in enumerate(multiples):
            width = multiple * model.d_ch
            self.blocks.append(DBlock(before, width, i < halvings, i == 0))
            before, side = width, side // 2 if i < halvings else side
            if i < halvings and side in model.d_attention:
                self.attentions[str(side)] = Attention(width)
        self.linear = dense(before, 1)
        self.table = Table(model.num_classes, before).make_u()

    def forward(self, x, labels):
        h = x
        for i, block in enumerate(self.blocks):
            h = block(h)
            if str(h.shape[-1]) in self.attentions and self.blocks[i].down:
                h = self.attentions[str(h.shape[-1])](h)
        h = F.relu(h).sum((2, 3))
        return self.linear(h)[:, 0] + (self.table(labels) * h).sum(1)


class Step:
    """A training step of made-up images; a call is a step, done when it returns."""

    def __init__(self, config, channels_last=True):
        """Builds networks on the GPU, if there is one: TF32 or bfloat16, compiled."""
        m, o = config.model, config.optim
        torch.manual_seed(0)
        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.g, self.d = Generator(m).to(self.device), Discriminator(m).to(self.device)
        self.average = Generator(m).to(self.device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        for net in (self.g, self.d):
            net.to(memory_format=self.layout)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as JAX has it.
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        compiled = torch.compile if self.device == "cuda" else lambda net: net
        self.run_g, self.run_d = compiled(self.g), compiled(self.d)
        adam = lambda net, lr: torch.optim.Adam(  # noqa: E731
            net.parameters(), lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=self.device == "cuda"
        )
        self.g_adam, self.d_adam = adam(self.g, o.g_lr), adam(self.d, o.d_lr)
        shape = (config.d_steps, config.batch_size, 3, m.resolution, m.resolution)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        self.labels = self.draw_labels(config.d_steps)

    def draw_labels(self, *rounds):
        shape = (*rounds, self.config.batch_size)
        return torch.randint(self.config.model.num_classes, shape, device=self.device)

    def fakes(self):
        c = self.config
        labels = self.draw_labels()
        z = torch.randn(c.batch_size, c.model.z_dim, device=self.device)
        return self.run_g(z, labels), labels

    def lowered(self):
        bf16 = self.config.model.dtype == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=bf16)

    def d_update(self, images, labels):
        self.d_adam.zero_grad(set_to_none=True)
        with self.lowered():
            with torch.no_grad():
                fake, fake_labels = self.fakes()
            real = (images.float() / 127.5 - 1).contiguous(memory_format=self.layout)
            logits = self.run_d(torch.cat([fake, real]), torch.cat([fake_labels, labels]))
            fake, real = logits.float().chunk(2)
            loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        loss.backward()
        self.d_adam.step()

    def g_update(self):
        self.g_adam.zero_grad(set_to_none=True)
        self.d.requires_grad_(False)
        with self.lowered():
            loss = -self.run_d(*self.fakes()).float().mean()
        loss.backward()
        self.d.requires_grad_(True)
        if self.config.optim.g_ortho:
            self.orthogonalise(self.config.optim.g_ortho)
        self.g_adam.step()

    @torch.no_grad()
    def orthogonalise(self, beta):
        for module in self.g.modules():
            if isinstance(module, Conv | Dense):
                w = module.weight.reshape(len(module.weight), -1)
                product = w @ w.T
                product.fill_diagonal_(0)
                module.weight.grad += (4 * beta * product @ w).view_as(module.weight)

    def __call__(self):
        for images, labels in zip(self.images, self.labels, strict=True):
            self.d_update(images, labels)
        self.g_update()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.g.parameters()), 1 - 0.9999
            )
        if self.device == "cuda":
            torch.cuda.synchronize()

    def memory(self):
        """Bytes of the GPU at most in use, None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None
