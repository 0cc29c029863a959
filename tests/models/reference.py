"""The towers in float64 numpy: textbook formulas, sharing no code with the package."""

from __future__ import annotations

import math

import numpy as np

erf = np.vectorize(math.erf)


def rope_rows(positions, head_dim, theta=10000.0):
    """Angles F [L, K] as published: f = concat(t inv_t, h inv_h, w inv_w), F = concat(f, f)."""
    unit = head_dim // 2 // 16
    parts = []
    for axis, n in enumerate((4 * unit, 6 * unit, 6 * unit)):
        inverse = np.array([theta ** (-i / n) for i in range(n)])
        parts.append(positions[:, axis, None] * inverse)
    f = np.concatenate(parts, axis=1)
    return np.concatenate([f, f], axis=1)


def rotate(x, angles):
    """x [L, H, K]: out = x cos F + R(x) sin F with R(x)[2i] = -x[2i+1], R(x)[2i+1] = x[2i]."""
    rotated = np.empty_like(x)
    rotated[..., 0::2] = -x[..., 1::2]
    rotated[..., 1::2] = x[..., 0::2]
    return x * np.cos(angles)[:, None] + rotated * np.sin(angles)[:, None]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, allowed=None):
    """q [L, H, K], k and v [S, H, K], allowed bool [L, S] -> [L, H, K]."""
    z = np.einsum("lhk,shk->hls", q, k) / math.sqrt(q.shape[-1])
    if allowed is not None:
        z = np.where(allowed[None], z, -np.inf)
    return np.einsum("hls,shk->lhk", softmax(z), v)


def layer_norm(x, p, eps=1e-6):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def mlp(x, p):
    h = linear(x, p["fc1"])
    return linear(gelu_exact(h), p["fc2"])


def head(x, p, heads):
    """A = MHA(probe, X, X); y = A + MLP(RMSNorm(A))."""
    D = x.shape[-1]
    w, b = p["attn"]["qkv"]["kernel"], p["attn"]["qkv"]["bias"]
    q = (p["probe"][0] @ w[:, :D] + b[:D]).reshape(1, heads, -1)
    k = (x @ w[:, D : 2 * D] + b[D : 2 * D]).reshape(len(x), heads, -1)
    v = (x @ w[:, 2 * D :] + b[2 * D :]).reshape(len(x), heads, -1)
    a = linear(attend(q, k, v).reshape(1, D), p["attn"]["out"])
    rms = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    return (a + mlp(rms, p["mlp"]))[0]


def vit(params, patches, positions, heads, eps=1e-6, theta=10000.0):
    """One row: uint8 [L, P*P*3], int [L, 3] -> tokens [L, D], pooled [D], hidden states."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (patches.reshape(len(patches), -1, 3) / 255.0 - mean) / std
    x = pixels.reshape(len(patches), -1) @ params["patch_embed"]["kernel"]
    x = layer_norm(x, params["layernorm_pre"], eps)
    L, D = x.shape
    angles = rope_rows(positions, D // heads, theta)
    states = [x]
    stacked = params["blocks"]
    for i in range(len(stacked["norm1"]["scale"])):
        p = _layer(stacked, i)
        q, k, v = np.split(linear(layer_norm(x, p["norm1"], eps), p["attn"]["qkv"]), 3, axis=-1)
        q, k, v = (a.reshape(L, heads, -1) for a in (q, k, v))
        y = attend(rotate(q, angles), rotate(k, angles), v)
        x = x + linear(y.reshape(L, D), p["attn"]["out"])
        x = x + mlp(layer_norm(x, p["norm2"], eps), p["mlp"])
        states.append(x)
    tokens = layer_norm(x, params["layernorm_post"], eps)
    return tokens, head(tokens, params["head"], heads), states


def blocks(x, stacked, heads, allowed, activation):
    """Pre-norm blocks without a position code: x [L, D], allowed bool [L, L]."""
    L, D = x.shape
    for i in range(len(stacked["norm1"]["scale"])):
        p = _layer(stacked, i)
        q, k, v = np.split(linear(layer_norm(x, p["norm1"]), p["attn"]["qkv"]), 3, axis=-1)
        y = attend(*(a.reshape(L, heads, -1) for a in (q, k, v)), allowed)
        x = x + linear(y.reshape(L, D), p["attn"]["out"])
        h = linear(layer_norm(x, p["norm2"]), p["mlp"]["fc1"])
        x = x + linear(activation(h), p["mlp"]["fc2"])
    return x


def gelu_exact(h):
    return h * 0.5 * (1 + erf(h / math.sqrt(2)))


def gelu_tanh(h):
    return 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def sincos(position, width):
    """Of one patch (t, h, w): sin w, cos w, sin h, cos h at frequencies 1 ... 1/10000."""
    _, h, w = position
    n = width // 4
    omega = [10000 ** (-i / (n - 1)) for i in range(n)]
    return np.array([f(x * o) for x in (w, h) for f in (math.sin, math.cos) for o in omega])


def openvision(params, patches, positions, heads):
    """One row: uint8 [L, P*P*3], int [L, 3] -> tokens [L, D] before the norm, pooled [D]."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (patches.reshape(len(patches), -1, 3) / 255.0 - mean) / std
    x = pixels.reshape(len(patches), -1) @ params["patch_embed"]["kernel"]
    x = x + np.stack([sincos(p, x.shape[1]) for p in positions])
    x = np.concatenate([params["cls"][None], x])
    x = blocks(x, params["blocks"], heads, np.ones((len(x), len(x)), bool), gelu_exact)[1:]
    return x, layer_norm(x.mean(0), params["layernorm_post"])


def text(params, ids, heads):
    """One row of ids [T] -> tokens [T, D] before the norm, pooled [E]."""
    x = params["token_embed"]["embedding"][ids] + params["pos_embedding"]
    x = blocks(x, params["blocks"], heads, np.ones((len(x), len(x)), bool), gelu_tanh)
    return x, layer_norm(x[-1], params["layernorm_post"]) @ params["head"]["kernel"]


def captions(params, image_tokens, context, heads):
    """One row of the decoder; context: text tokens [T, D] (queries) or ids [O] (causal)."""
    prefix = [image_tokens @ params["image_proj"]["kernel"]]
    if "queries" in params:
        prefix.append(context[:-1] @ params["text_proj"]["kernel"])
        outputs = params["queries"]
    else:
        embedding = params["token_embed"]["embedding"]
        outputs = np.stack([params["start"], *(embedding[i] for i in context[:-1])])
    x = np.concatenate([*prefix, outputs])
    n = len(x) - len(outputs)
    query, key = np.mgrid[: len(x), : len(x)]
    allowed = (key < n) | (key <= query)
    x = blocks(x, params["blocks"], heads, allowed, gelu_tanh)
    return layer_norm(x[n:], params["layernorm_post"])


def _layer(tree, i):
    return {k: _layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}
