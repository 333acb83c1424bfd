#!/usr/bin/env python3
"""Float64 evaluator of the block-state transformer family, the oracle of the engine tests.

The whole sequence is evaluated at once, straight from the formulas: every linear state-space layer
as a convolution with its impulse response, every attention with an explicit [query, key] mask.
There is no cache, no chunking and no state hand-over, so nothing here resembles the way an engine
works. It needs Python 3.11 and numpy, nothing else.

    evaluator.py logits DIR [--tokens FILE] -o logits.npy    logits after every token, [L, V]
    evaluator.py score  DIR [--tokens FILE]                  natural-log probability of each token
    evaluator.py greedy DIR [--tokens FILE] -n 16            the argmax continuation of the prompt

FILE is a JSON list of token ids, DIR/tokens.json by default; `-` reads it from standard input.

Conventions: a linear weight is stored [out, in], so `linear(x, w) = x wᵀ`, and has no bias. L
tokens, width D, H heads of size dh, A = H·dh, window and block length W. Per-head arrays are laid
out [H, L, dh].
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np

import safetensors_file

Array = np.ndarray
Config = dict[str, Any]


class Checkpoint:
    """config.json and all tensors of a directory; remembers which tensors were asked for."""

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self.config: Config = json.loads((directory / "config.json").read_text())
        index = directory / "model.safetensors.index.json"
        if index.exists():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            shards = {f: safetensors_file.read(directory / f) for f in set(weight_map.values())}
            stored = {(name, file) for file, shard in shards.items() for name in shard}
            if stored != set(weight_map.items()):
                raise ValueError(f"{index} disagrees with the shards")
            self.tensors = {name: shards[file][name] for name, file in weight_map.items()}
        else:
            self.tensors = safetensors_file.read(directory / "model.safetensors")
        self._used: set[str] = set()

    def take(self, name: str, *shape: int) -> Array:
        """The tensor `name`, which must have exactly this shape."""
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tensor.shape}, expected {shape}")
        self._used.add(name)
        return tensor

    def take_complex(self, name: str, *shape: int) -> Array:
        """A complex tensor, stored with a trailing (real, imaginary) pair."""
        pair = self.take(name, *shape, 2)
        return pair[..., 0] + 1j * pair[..., 1]

    def unused(self) -> list[str]:
        """Tensors no layer asked for: superfluous ones, once the model has run."""
        return sorted(set(self.tensors) - self._used)


def linear(x: Array, weight: Array) -> Array:
    return x @ weight.T


def rms(x: Array, gain: Array, eps: float) -> Array:
    """g ⊙ x / sqrt(mean(x²) + eps) over the last axis."""
    return gain * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def l2(v: Array) -> Array:
    """v / sqrt(Σ v² + 1e-6) over one head."""
    return v / np.sqrt(np.sum(v * v, axis=-1, keepdims=True) + 1e-6)


_erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x: Array) -> Array:
    """The exact form, x·Φ(x)."""
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)).astype(np.float64))


def sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def rope(x: Array, theta: float) -> Array:
    """Rotates the pairs (x[j], x[j + dh/2]) of x [H, L, dh] by the angle t·theta^(−2j/dh)."""
    length, half = x.shape[1], x.shape[2] // 2
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def t5_bucket(distance: Array, buckets: int, max_distance: int) -> Array:
    """Unidirectional T5 buckets: exact below half, then logarithmic up to max_distance.

    The 1e-9 keeps a distance that lies exactly on a boundary in the upper bucket.
    """
    half = buckets // 2
    n = np.maximum(distance, 0)
    ratio = np.log(np.maximum(n, half) / half) / math.log(max_distance / half)
    large = half + np.floor(ratio * (buckets - half) + 1e-9).astype(int)
    return np.where(n < half, n, np.minimum(buckets - 1, large))


def attend(scores: Array, visible: Array | bool, values: Array) -> Array:
    """softmax(scores [H, Q, K] over the visible keys) · values [H, K, dh]; 0 if none is visible."""
    scores = np.where(visible, scores, -np.inf)
    peak = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights / np.where(total > 0.0, total, 1.0)) @ values


def convolve(kernel: Array, u: Array) -> Array:
    """y[t, ...] = Σ_{τ≤t} kernel[τ, ...]·u[t−τ, ...] along the first axis, by a padded FFT."""
    length = u.shape[0]
    size = 1 << (2 * length - 1).bit_length()
    spectrum = np.fft.fft(kernel, size, axis=0) * np.fft.fft(u, size, axis=0)
    y = np.fft.ifft(spectrum, axis=0)[:length]
    return y if np.iscomplexobj(kernel) or np.iscomplexobj(u) else y.real


def discretize(a: Array, step: Array, method: str) -> tuple[Array, Array]:
    """(Ā, B̄/b) of the modes x' = a x + b u sampled with `step`.

    zoh:       Ā = e^{Δa},               B̄ = b (e^{Δa} − 1)/a, or b Δ where a = 0
    bilinear:  Ā = (1 + Δa/2)/(1 − Δa/2), B̄ = b Δ/(1 − Δa/2)
    """
    z = step * a
    if method == "zoh":
        zero = a == 0.0
        return np.exp(z), np.where(zero, step, np.expm1(z) / np.where(zero, 1.0, a))
    return (1.0 + z / 2) / (1.0 - z / 2), step / (1.0 - z / 2)


def modal_kernel(coefficient: Array, a_bar: Array, length: int) -> Array:
    """Σ_m coefficient[..., m]·Ā[..., m]^l for l = 0 … length−1, along a new first axis."""
    kernel = np.empty((length, *coefficient.shape[:-1]), dtype=complex)
    term = coefficient.astype(complex)
    for tap in range(length):
        kernel[tap] = term.sum(axis=-1)
        term = term * a_bar
    return kernel


def dplr_kernel(a: Array, p: Array, b: Array, c: Array, step: Array, length: int) -> Array:
    """Impulse response of A = Λ − p pᴴ, bilinear, on the M stored modes and their conjugates.

    With everything doubled to N = 2M (Λ, p, b, c each followed by its conjugate),
    Ā = (I − Δ/2 A)⁻¹(I + Δ/2 A), B̄ = (I − Δ/2 A)⁻¹ Δ b and K[l] = c Āˡ B̄, which is real. The
    columns Āˡ B̄ are made by doubling: once l < n are known, Āⁿ times them are n ≤ l < 2n.
    """
    a, p, b, c = (np.concatenate([v, v.conj()], axis=-1) for v in (a, p, b, c))
    eye = np.eye(a.shape[-1])
    matrix = a[..., :, None] * eye - p[..., :, None] * p[..., None, :].conj()
    half = 0.5 * step[..., None, None] * matrix
    power = np.linalg.solve(eye - half, eye + half)
    columns = np.linalg.solve(eye - half, (step[..., None] * b)[..., None])
    while columns.shape[-1] < length:
        columns = np.concatenate([columns, power @ columns], axis=-1)
        power = power @ power
    kernel = (c[..., None, :] @ columns[..., :length])[..., 0, :].real
    return np.moveaxis(kernel, -1, 0)


def ssm(ck: Checkpoint, prefix: str, config: Config, u: Array, filters: int) -> Array:
    """y [L, C, D] of u [L, D]: C causal long convolutions per feature and the skip d·u.

    y[t,c,d] = Σ_{τ≤t} K[τ,c,d] u[t−τ,d] + d[c,d] u[t,d], where K[l] = readout(Σ c Āˡ B̄), readout
    being 2Re for conjugate pairs (s4d, s4, s5) and Re for full modes (dss). In s5 one state reads
    all features: x_t = Ā x_{t−1} + B̄ u_t with B̄ [P, D], y = 2Re(c x).
    """
    (length, width), kind = u.shape, config["kernel"]
    shape = (filters, width)
    skip = ck.take(f"{prefix}.d", *shape) * u[:, None, :]
    if kind == "explicit":
        taps = config["length"]
        kernel = np.zeros((length, *shape))
        used = min(taps, length)
        stored = ck.take(f"{prefix}.filter", *shape, taps)
        kernel[:used] = np.moveaxis(stored, -1, 0)[:used]
        return convolve(kernel, u[:, None, :]) + skip
    size = config["state_size"]
    if kind == "s5":
        p = size // 2
        lam = ck.take(f"{prefix}.lambda_real", p) + 1j * ck.take(f"{prefix}.lambda_imag", p)
        step = np.exp(ck.take(f"{prefix}.log_step", p))
        a_bar, factor = discretize(lam, step, config.get("discretization", "zoh"))
        if np.any(np.abs(a_bar) > 1.0):
            raise ValueError(f"{prefix}: a mode grows, |Ā| > 1")
        inputs = u @ (factor[:, None] * ck.take_complex(f"{prefix}.b", p, width)).T
        state = convolve(a_bar ** np.arange(length)[:, None], inputs)
        readout = ck.take_complex(f"{prefix}.c", *shape, p)
        return 2.0 * np.einsum("cdp,lp->lcd", readout, state, optimize=True).real + skip
    step = np.exp(ck.take(f"{prefix}.log_dt", *shape))[..., None]
    mode_shape = (size,) if kind == "dss" else (*shape, size // 2)
    a = -np.exp(ck.take(f"{prefix}.log_neg_a_real", *mode_shape))
    a = a + 1j * ck.take(f"{prefix}.a_imag", *mode_shape)
    if kind == "dss":
        a_bar, factor = discretize(a, step, "zoh")
        weight = ck.take_complex(f"{prefix}.w", *shape, size)
        return convolve(modal_kernel(weight * factor, a_bar, length).real, u[:, None, :]) + skip
    c = ck.take_complex(f"{prefix}.c", *mode_shape)
    has_b = kind == "s4" or f"{prefix}.b" in ck.tensors
    b = ck.take_complex(f"{prefix}.b", *mode_shape) if has_b else np.ones(mode_shape, complex)
    if kind == "s4":
        p = ck.take_complex(f"{prefix}.p", *mode_shape)
        kernel = dplr_kernel(a, p, b, c, step[..., 0], length)
    elif kind == "s4d":
        a_bar, factor = discretize(a, step, config.get("discretization", "zoh"))
        kernel = 2.0 * modal_kernel(c * b * factor, a_bar, length).real
    else:
        raise ValueError(f"unknown kernel {kind}")
    return convolve(kernel, u[:, None, :]) + skip


class Model:
    """A checkpoint and its forward pass."""

    def __init__(self, directory: str | Path) -> None:
        self.ck = Checkpoint(directory)
        self.config = config = self.ck.config
        self.width, self.heads = config["hidden_size"], config["num_heads"]
        self.head_dim, self.window = config["head_dim"], config["window"]
        self.attn_size = self.heads * self.head_dim
        self.qk_norm = config["attention"]["qk_norm"]

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [L, V] after every token: rms(x; final_norm)·Eᵀ·logit_scale."""
        config, vocab = self.config, self.config["vocab_size"]
        ids = np.asarray(tokens, dtype=int)
        if ids.ndim != 1 or ids.size == 0 or ids.min() < 0 or ids.max() >= vocab:
            raise ValueError(f"token ids must be a non-empty list of numbers in 0..{vocab - 1}")
        embed = self.ck.take("embed.weight", vocab, self.width)
        x = embed[ids]
        for number, layer in enumerate(config["layers"]):
            apply = self.gss if layer["type"] == "gss" else self.attention_layer
            x = apply(f"layers.{number}", layer, x)
        tied = config["tie_embeddings"]
        head = embed if tied else self.ck.take("lm_head.weight", vocab, self.width)
        logits = linear(self.norm("final_norm", x), head) * config["logit_scale"]
        if self.ck.unused():
            raise ValueError(f"superfluous tensors: {', '.join(self.ck.unused())}")
        return logits

    def norm(self, name: str, x: Array) -> Array:
        gain = self.ck.take(f"{name}.weight", self.width)
        return rms(x, gain, self.config["norm_eps"])

    def split(self, x: Array, name: str) -> Array:
        """Projects x [L, D] to [H, L, dh]; head h owns rows h·dh … of the weight."""
        y = linear(x, self.ck.take(f"{name}.weight", self.attn_size, self.width))
        return y.reshape(len(x), self.heads, self.head_dim).transpose(1, 0, 2)

    def unit(self, v: Array) -> Array:
        """The normalisation of queries and keys: l2 per head under qk_norm, else none."""
        return l2(v) if self.qk_norm else v

    def scale(self, name: str) -> Array:
        """[H, 1, 1]: |scale[h]| under qk_norm, where only the magnitude counts; else 1/sqrt(dh)."""
        if self.qk_norm:
            return np.abs(self.ck.take(name, self.heads))[:, None, None]
        return np.full((self.heads, 1, 1), 1.0 / math.sqrt(self.head_dim))

    def local_attention(self, prefix: str, q: Array, k: Array, v: Array) -> Array:
        """o [H, L, dh]: softmax over the visible j of (⟨q_t, k_j⟩ + bias(t−j))·scale, times v.

        sliding: the newest W keys, distances 0..W−1 or, without self, 1..W. block: the same inside
        the block of t only. With an empty prefix of zeros, W keys and values of 0 stand before the
        document: their logit is bias·scale, and the window reaches them like any others.
        """
        att, length, window = self.config["attention"], q.shape[1], self.window
        scale = self.scale(f"{prefix}.attn.scale")
        if att["position"] == "rope":
            q, k = rope(q, att["rope_theta"]), rope(k, att["rope_theta"])
        pad = window if att["empty_prefix"] == "zeros" else 0
        k, v = (np.pad(w, ((0, 0), (pad, 0), (0, 0))) for w in (k, v))
        t, j = np.arange(length)[:, None], np.arange(-pad, length)[None, :]
        nearest = 0 if att["include_self"] else 1
        visible = (t - j >= nearest) & (t - j < nearest + window)
        if att["scope"] == "block":
            visible &= t // window == j // window
        scores = q @ k.transpose(0, 2, 1)
        if att["position"] == "t5":
            buckets = att["t5_num_buckets"]
            table = self.ck.take(f"{prefix}.attn.position_bias", self.heads, buckets)
            scores = scores + table[:, t5_bucket(t - j, buckets, att["t5_max_distance"])]
        return attend(scores * scale, visible, v)

    def attention_layer(self, prefix: str, layer: Config, x: Array) -> Array:
        """transformer, bst and brect: h = x + concat(heads)·Wo; y = h + FFN(rms(h; ffn_norm)).

        bst and brect put the cross-attention heads after the local ones, Wo being [D, 2A] then.
        """
        n = self.norm(f"{prefix}.attn_norm", x)
        q, k = (self.unit(self.split(n, f"{prefix}.attn.{s}_proj")) for s in "qk")
        v = self.split(n, f"{prefix}.attn.v_proj")
        heads = self.local_attention(prefix, q, k, v)
        if layer["type"] != "transformer":
            qc = self.unit(self.split(n, f"{prefix}.cross.q_proj"))
            if layer["type"] == "brect":
                cross = self.recurrent_cross(prefix, layer, qc, k, v)
            elif layer["context"] == "multi_filter":
                cross = self.filter_cross(prefix, layer, qc, x)
            else:
                cross = self.causal_cross(prefix, layer, qc, x)
            heads = np.concatenate([heads, cross])
        merged = heads.transpose(1, 0, 2).reshape(len(x), -1)
        out = self.ck.take(f"{prefix}.attn.o_proj.weight", self.width, merged.shape[1])
        h = x + linear(merged, out)
        return h + self.feed_forward(prefix, self.norm(f"{prefix}.ffn_norm", h))

    def feed_forward(self, prefix: str, z: Array) -> Array:
        """act(z·Wup)·Wdown, or (act(z·Wgate) ⊙ (z·Wup))·Wdown for geglu and swiglu."""
        size, kind = self.config["ffn_size"], self.config["ffn_activation"]
        up = linear(z, self.ck.take(f"{prefix}.ffn.up_proj.weight", size, self.width))
        if kind == "relu":
            hidden = np.maximum(up, 0.0)
        elif kind == "gelu":
            hidden = gelu(up)
        else:
            gate = linear(z, self.ck.take(f"{prefix}.ffn.gate_proj.weight", size, self.width))
            hidden = (gelu(gate) if kind == "geglu" else gate * sigmoid(gate)) * up
        return linear(hidden, self.ck.take(f"{prefix}.ffn.down_proj.weight", self.width, size))

    def context(self, prefix: str, layer: Config, x: Array, filters: int) -> Array:
        """SSM outputs [L, C, D] of rms(x; ssm_norm), the raw context vectors."""
        u = self.norm(f"{prefix}.ssm_norm", x)
        return ssm(self.ck, f"{prefix}.ssm", layer["ssm"], u, filters)

    def causal_cross(self, prefix: str, layer: Config, qc: Array, x: Array) -> Array:
        """single_head and multi_head: t sees the outputs of its own block up to and including t.

        multi_head has one filter, and one slice of the key and value weights, per head.
        """
        multi = layer["context"] == "multi_head"
        y = self.context(prefix, layer, x, self.heads if multi else 1)
        r = self.norm(f"{prefix}.cross.norm", y)
        if multi:
            shape = (self.heads, self.head_dim, self.width)
            weights = (self.ck.take(f"{prefix}.cross.{s}_proj.weight", *shape) for s in "kv")
            kc, vc = (r.transpose(1, 0, 2) @ w.transpose(0, 2, 1) for w in weights)
        else:
            kc, vc = (self.split(r[:, 0], f"{prefix}.cross.{s}_proj") for s in "kv")
        t, j = np.arange(len(x))[:, None], np.arange(len(x))[None, :]
        visible = (j <= t) & (t // self.window == j // self.window)
        scores = qc @ self.unit(kc).transpose(0, 2, 1) * self.scale(f"{prefix}.cross.scale")
        return attend(scores, visible, vc)

    def filter_cross(self, prefix: str, layer: Config, qc: Array, x: Array) -> Array:
        """multi_filter: block k sees the S outputs at the last position of block k−1.

        Block 0 sees a learned set instead. The learned ids are added after the norm, to both.
        """
        states, window = layer["num_states"], self.window
        y = self.context(prefix, layer, x, states)
        initial = self.ck.take(f"{prefix}.cross.initial_context", states, self.width)
        ids = self.ck.take(f"{prefix}.cross.context_ids", states, self.width)
        scale = self.scale(f"{prefix}.cross.scale")
        out = np.empty_like(qc)
        for begin in range(0, len(x), window):
            c = y[begin - 1] if begin else initial
            r = self.norm(f"{prefix}.cross.norm", c) + ids
            kc, vc = (self.split(r, f"{prefix}.cross.{s}_proj") for s in "kv")
            block = slice(begin, begin + window)
            scores = qc[:, block] @ self.unit(kc).transpose(0, 2, 1) * scale
            out[:, block] = attend(scores, True, vc)
        return out

    def recurrent_cross(self, prefix: str, layer: Config, qc: Array, k: Array, v: Array) -> Array:
        """brect: block k attends to S recurrent states; a completed block updates them.

        ns = rms(s; state.norm) + state.ids makes the states' keys, values and two queries. The
        states attend to themselves and to the token keys (before RoPE) of blocks k−1 and k; then
        s ← s ⊙ g + z ⊙ (1 − g) with z the projected result and g = σ(gate_bias). Block −1 counts
        as W keys and values of 0 under an empty prefix of zeros, else it does not exist.
        """
        size, window = (layer["num_states"], self.width), self.window
        s = self.ck.take(f"{prefix}.state.initial", *size)
        ids = self.ck.take(f"{prefix}.state.ids", *size)
        gate = sigmoid(self.ck.take(f"{prefix}.state.gate_bias", self.width))
        out_proj = self.ck.take(f"{prefix}.state.o_proj.weight", self.width, 2 * self.attn_size)
        read_scale = self.scale(f"{prefix}.cross.scale")
        self_scale = self.scale(f"{prefix}.state.scale")
        cross_scale = self.scale(f"{prefix}.state.cross_scale")
        before = np.zeros((self.heads, window, self.head_dim))
        has_prefix = self.config["attention"]["empty_prefix"] == "zeros"
        out = np.empty_like(qc)
        for begin in range(0, qc.shape[1], window):
            ns = self.norm(f"{prefix}.state.norm", s) + ids
            ks, qs, qcs = (
                self.unit(self.split(ns, f"{prefix}.state.{p}_proj")) for p in ("k", "q", "cross_q")
            )
            vs = self.split(ns, f"{prefix}.state.v_proj")
            keys = ks.transpose(0, 2, 1)
            block = slice(begin, begin + window)
            out[:, block] = attend(qc[:, block] @ keys * read_scale, True, vs)
            kb, vb = k[:, block], v[:, block]
            if kb.shape[1] < window:
                break
            if begin:
                kb, vb = (w[:, begin - window : begin + window] for w in (k, v))
            elif has_prefix:
                kb, vb = (np.concatenate([before, w], axis=1) for w in (kb, vb))
            r_self = attend(qs @ keys * self_scale, True, vs)
            r_cross = attend(qcs @ kb.transpose(0, 2, 1) * cross_scale, True, vb)
            merged = np.concatenate([r_self, r_cross]).transpose(1, 0, 2).reshape(len(s), -1)
            s = s * gate + linear(merged, out_proj) * (1.0 - gate)
        return out

    def gss(self, prefix: str, layer: Config, x: Array) -> Array:
        """y = x + ((SSM(v)·Wgate) ⊙ u)·Wout with u = gelu(n·Wu), v = gelu(n·Wv)."""
        inner, size, ck = layer["inner_size"], layer["ssm_size"], self.ck
        n = self.norm(f"{prefix}.gss.norm", x)
        u = gelu(linear(n, ck.take(f"{prefix}.gss.u_proj.weight", inner, self.width)))
        v = gelu(linear(n, ck.take(f"{prefix}.gss.v_proj.weight", size, self.width)))
        s = ssm(ck, f"{prefix}.ssm", layer["ssm"], v, 1)[:, 0]
        gated = linear(s, ck.take(f"{prefix}.gss.gate_proj.weight", inner, size)) * u
        return x + linear(gated, ck.take(f"{prefix}.gss.out_proj.weight", self.width, inner))


def evaluate(directory: str | Path, tokens: Sequence[int]) -> Array:
    """Logits [L, V], float64, of the checkpoint in `directory`."""
    return Model(directory).logits(tokens)


def score_expectation(model: Model, tokens: Sequence[int]) -> list[float | None]:
    """log p(token t | tokens before t), natural logarithm; None for token 0, which has none."""
    logits = model.logits(tokens)[:-1]
    peak = logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    chosen = logits[np.arange(len(logits)), np.asarray(tokens[1:], dtype=int)]
    return [None, *(float(p) for p in chosen - log_total)]


def greedy(model: Model, tokens: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """`count` argmax tokens after the prompt (the lower id at a tie, no stop) and their margins."""
    sequence, margins = list(tokens), []
    for _ in range(count):
        last = model.logits(sequence)[-1]
        second, best = np.sort(last)[-2:]
        sequence.append(int(last.argmax()))
        margins.append(float(best - second))
    return sequence[len(tokens) :], margins


def relative_rms(actual: Array, expected: Array) -> float:
    """sqrt(Σ (actual − expected)² / Σ expected²) over the whole array; inf if not comparable."""
    if actual.shape != expected.shape or not np.all(np.isfinite(actual)):
        return math.inf
    difference = np.asarray(actual, np.float64) - expected
    return float(np.sqrt(np.sum(difference**2) / np.sum(np.asarray(expected, np.float64) ** 2)))


def main() -> int:
    parser = argparse.ArgumentParser(description="float64 oracle for checkpoint directories")
    parser.add_argument("action", choices=["logits", "score", "greedy"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokens", help="JSON list of ids, '-' for stdin [DIR/tokens.json]")
    parser.add_argument("-n", type=int, default=16, help="tokens to generate [16]")
    parser.add_argument("-o", "--output", help="where `logits` writes its float64 array")
    args = parser.parse_args()
    source = args.tokens or str(args.directory / "tokens.json")
    tokens = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    model = Model(args.directory)
    if args.action == "logits":
        if not args.output:
            parser.error("logits needs -o FILE")
        np.save(args.output, model.logits(tokens))
    elif args.action == "score":
        print(json.dumps({"tokens": tokens, "logprobs": score_expectation(model, tokens)}))
    else:
        chosen, margins = greedy(model, tokens, args.n)
        print(json.dumps({"tokens": chosen, "margins": margins}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
