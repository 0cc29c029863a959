"""The training step of benchmarks/train_step.py in PyTorch: the same model, loss and optimiser.

Written as a PyTorch user would: nn.Linear, scaled_dot_product_attention, autocast, fused AdamW.
`load_jax` copies our parameters in, so that train_step.py can check that both compute one function.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Block(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x, cos, sin):
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Pool(nn.Module):
    """The published pooling head: multi-head attention of one query, then an MLP."""

    def __init__(self, width, heads, mlp):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.RMSNorm(width, 1e-6)
        self.fc1, self.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x):
        y = self.attn(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0]
        return y + self.fc2(F.gelu(self.fc1(self.norm(y))))


class TorchViT(nn.Module):
    def __init__(self, width, depth, heads, mlp, patch, classes):
        super().__init__()
        self.embed = nn.Linear(patch**2 * 3, width, bias=False)
        self.pre, self.post = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.pool = Pool(width, heads, mlp)
        self.centres = nn.Parameter(0.01 * torch.randn(classes, width))
        scale = torch.tensor(STD).repeat(patch**2) * 255
        self.register_buffer("scale", 1 / scale)
        self.register_buffer("shift", torch.tensor(MEAN).repeat(patch**2) * 255 / scale)
        # 4:6:6 parts of half a head for t, h and w, each over its own range of frequencies.
        half = width // heads // 2
        sizes = [part * half // 16 for part in (4, 6, 6)]
        inverse = np.concatenate([10000.0 ** (-np.arange(n) / n) for n in sizes])
        self.register_buffer("inverse", torch.tensor(inverse, dtype=torch.float32))
        self.register_buffer("axis", torch.tensor(np.repeat(np.arange(3), sizes)))

    def forward(self, patches, positions):
        """uint8 [B, L, K], int [B, L, 3] -> [B, D]."""
        x = self.embed(patches.float() * self.scale - self.shift)
        # Autocast leaves norms in float32, and with them the residual stream: ours has the lower.
        x = self.pre(x).to(x.dtype)
        angles = positions.float()[..., self.axis] * self.inverse
        angles = torch.cat([angles, angles], -1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.pool(self.post(x))

    def loss(self, patches, positions, labels, margin=0.3, scale=64.0, threshold=0.75):
        """CosFace with the filter of duplicates, one label a sample."""
        pooled = F.normalize(self(patches, positions).float(), dim=-1)
        cosine = (pooled @ F.normalize(self.centres.float(), dim=-1).T).clamp(-1, 1)
        target = F.one_hot(labels, len(self.centres)).bool()
        cosine = torch.where(target, cosine - margin, torch.where(cosine > threshold, 0, cosine))
        return F.cross_entropy(scale * cosine, labels)


def rotate(x, cos, sin):
    """The published rotary code: interleaved pairs under concatenated angles."""
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)


def make_step(model, optimizer, autocast):
    """A function from a batch to the loss, which moves the parameters."""
    device = next(model.parameters()).device.type
    encoder = [p for name, p in model.named_parameters() if name != "centres"]

    def step(patches, positions, labels):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model.loss(patches, positions, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder, 5.0)
        torch.nn.utils.clip_grad_norm_([model.centres], 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def make_optimizer(model):
    """AdamW; decay on matrices and centres only, as ours."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim == 2]
    plain = [p for name, p in named if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


def load_jax(model, params):
    """Copies the tree {"encoder": ..., "heads": ...} of our training state into the model."""
    encoder = params["encoder"]

    def put(parameter, value):
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(value)))

    def linear(module, tree, pick=lambda x: x):
        put(module.weight, np.swapaxes(pick(tree["kernel"]), 0, 1))
        if module.bias is not None:
            put(module.bias, pick(tree["bias"]))

    def norm(module, tree, pick=lambda x: x):
        put(module.weight, pick(tree["scale"]))
        put(module.bias, pick(tree["bias"]))

    linear(model.embed, encoder["patch_embed"])
    norm(model.pre, encoder["layernorm_pre"])
    norm(model.post, encoder["layernorm_post"])
    for i, block in enumerate(model.blocks):
        tree = encoder["blocks"]

        def pick(x, i=i):
            return x[i]

        norm(block.norm1, tree["norm1"], pick)
        norm(block.norm2, tree["norm2"], pick)
        linear(block.qkv, tree["attn"]["qkv"], pick)
        linear(block.out, tree["attn"]["out"], pick)
        linear(block.fc1, tree["mlp"]["fc1"], pick)
        linear(block.fc2, tree["mlp"]["fc2"], pick)
    head = encoder["head"]
    put(model.pool.probe, head["probe"])
    put(model.pool.attn.in_proj_weight, np.swapaxes(head["attn"]["qkv"]["kernel"], 0, 1))
    put(model.pool.attn.in_proj_bias, head["attn"]["qkv"]["bias"])
    linear(model.pool.attn.out_proj, head["attn"]["out"])
    put(model.pool.norm.weight, head["norm"]["scale"])
    linear(model.pool.fc1, head["mlp"]["fc1"])
    linear(model.pool.fc2, head["mlp"]["fc2"])
    put(model.centres, params["heads"]["main"]["centres"])
