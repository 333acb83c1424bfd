#!/usr/bin/env python3
"""Random but valid checkpoints, to compare an engine with the evaluator where nobody looked before.

    random_checkpoint.py --seed 1 --index 17 --layers all DIR

writes DIR/config.json, DIR/model.safetensors (or shards with an index) and DIR/tokens.json. The
same seed, index and layer choice give the same files. Sizes are odd on purpose: widths that are no
multiple of anything, A = H·dh different from D, windows from 1 token up. Weights have the size of
trained ones: the residual stream, the queries and the logits are of order 1 to 3, attention is
neither uniform nor a single key, and state-space modes range from one token to a whole document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

import safetensors_file

Array = np.ndarray
Config = dict[str, Any]
Rng = np.random.Generator


def pick(rng: Rng, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


def between(rng: Rng, low: int, high: int) -> int:
    """A uniform integer, both ends included."""
    return int(rng.integers(low, high + 1))


def log_uniform(rng: Rng, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return np.exp(rng.uniform(math.log(low), math.log(high), shape))


def random_attention(rng: Rng) -> Config:
    """The `attention` object. Zeros before the document need the sliding scope."""
    scope = pick(rng, "sliding", "sliding", "block")
    prefix = pick(rng, "masked", "zeros") if scope == "sliding" else "masked"
    half = between(rng, 1, 18)
    return {
        "scope": scope,
        "include_self": chance(rng, 0.5),
        "empty_prefix": prefix,
        "qk_norm": chance(rng, 0.5),
        "position": pick(rng, "none", "t5", "rope"),
        "t5_num_buckets": 2 * half,
        "t5_max_distance": half + between(rng, 1, pick(rng, 4, 130)),
        "rope_theta": float(pick(rng, 10000.0, 500.0, 1e6, round(float(rng.uniform(20, 2e5)), 1))),
    }


def random_ssm(rng: Rng, kernels: tuple[str, ...], cheap: bool) -> Config:
    """The `ssm` object of a layer; `cheap` keeps the many filters of a layer small."""
    kernel = pick(rng, *kernels)
    if kernel == "explicit":
        return {"kernel": kernel, "length": int(log_uniform(rng, 1, 260))}
    size = between(rng, 1, 9) if kernel == "dss" else 2 * between(rng, 1, 3 if cheap else 8)
    config: Config = {"kernel": kernel, "state_size": size}
    allowed = {"dss": ("zoh",), "s4": ("bilinear",)}.get(kernel, ("zoh", "bilinear"))
    default = {"s4": "bilinear"}.get(kernel, "zoh")
    method = pick(rng, *allowed)
    if method != default or chance(rng, 0.5):
        config["discretization"] = method
    return config


def random_layer(rng: Rng, choice: str) -> Config:
    if choice == "basic":
        if chance(rng, 0.35):
            return {"type": "transformer"}
        ssm = random_ssm(rng, ("s4d",), cheap=False)
        return {"type": "bst", "context": "single_head", "ssm": ssm}
    kind = pick(rng, "transformer", "bst", "bst", "bst", "brect", "gss")
    if kind == "transformer":
        return {"type": kind}
    if kind == "brect":
        return {"type": kind, "num_states": between(rng, 1, pick(rng, 6, 45)), "gate": "fixed"}
    if kind == "gss":
        ssm = random_ssm(rng, ("s4d", "dss"), cheap=False)
        sizes = {"inner_size": between(rng, 9, 80), "ssm_size": between(rng, 5, 40)}
        return {"type": kind, **sizes, "ssm": ssm}
    context = pick(rng, "single_head", "multi_head", "multi_filter")
    many = context == "multi_filter"
    layer: Config = {"type": kind, "context": context}
    if many:
        layer["num_states"] = between(rng, 1, pick(rng, 6, 6, 30))
    layer["ssm"] = random_ssm(rng, ("s4d", "dss", "s4", "s5", "explicit"), cheap=many)
    return layer


def random_config(rng: Rng, choice: str) -> Config:
    """A complete config.json; `choice` is "basic" (transformer and single-head S4D) or "all"."""
    attention = random_attention(rng)
    head_dim = between(rng, 3, 24)
    if attention["position"] == "rope":
        head_dim += head_dim % 2
    width = between(rng, 17, 70)
    vocab = pick(rng, 256, between(rng, 257, 400))
    special = [None if chance(rng, 0.3) else between(rng, 0, vocab - 1) for _ in range(3)]
    return {
        "model_type": "block_state_transformer",
        "format_version": 1,
        "vocab_size": vocab,
        "hidden_size": width,
        "num_heads": between(rng, 1, 5),
        "head_dim": head_dim,
        "ffn_size": between(rng, 7, 150),
        "ffn_activation": pick(rng, "relu", "gelu", "geglu", "swiglu"),
        "window": between(rng, 1, pick(rng, 6, 16, 40)),
        "norm_eps": pick(rng, 1e-6, 1e-5, 1e-3),
        "logit_scale": round(float(rng.uniform(1.0, 3.0)) / math.sqrt(width), 5),
        "tie_embeddings": chance(rng, 0.5),
        "attention": attention,
        "layers": [random_layer(rng, choice) for _ in range(between(rng, 1, 4))],
        "tokenizer": {"type": "byte"},
        "bos_token_id": special[0],
        "eos_token_id": special[1],
        "pad_token_id": special[2],
    }


class Tensors:
    """The tensors of one model, each with random values of a sensible size."""

    def __init__(self, rng: Rng, config: Config) -> None:
        self.rng, self.config = rng, config
        self.values: dict[str, Array] = {}
        self.f32_only: set[str] = set()
        self.width, self.heads = config["hidden_size"], config["num_heads"]
        self.attn_size = self.heads * config["head_dim"]
        self.embeddings()
        for number, layer in enumerate(config["layers"]):
            self.layer(f"layers.{number}", layer)

    def put(self, name: str, values: Array, f32_only: bool = False) -> None:
        self.values[name] = np.asarray(values, np.float32)
        if f32_only:
            self.f32_only.add(name)

    def normal(self, name: str, *shape: int, std: float = 1.0, f32_only: bool = False) -> None:
        self.put(name, self.rng.normal(0.0, std, shape), f32_only)

    def linear(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Weights [.., out, in] that keep the size of their input, times gain."""
        self.normal(f"{name}.weight", *shape, std=gain / math.sqrt(shape[-1]))

    def norm(self, name: str) -> None:
        self.put(f"{name}.weight", self.rng.normal(1.0, 0.25, self.width))

    def scale(self, name: str) -> None:
        """Under qk_norm: ±(0.8 … 2.2)·sqrt(dh), as ⟨q, k⟩ of unit vectors is about 1/sqrt(dh)."""
        if self.config["attention"]["qk_norm"]:
            size = self.rng.uniform(0.8, 2.2, self.heads) * math.sqrt(self.config["head_dim"])
            self.put(name, size * self.rng.choice([-1.0, 1.0], self.heads), f32_only=True)

    def complex_normal(self, *shape: int) -> Array:
        """Unit variance, as a trailing (real, imaginary) pair."""
        return self.rng.normal(0.0, math.sqrt(0.5), (*shape, 2))

    def embeddings(self) -> None:
        vocab, width = self.config["vocab_size"], self.width
        self.normal("embed.weight", vocab, width, std=0.8)
        if not self.config["tie_embeddings"]:
            self.normal("lm_head.weight", vocab, width, std=0.8)
        self.norm("final_norm")

    def layer(self, prefix: str, layer: Config) -> None:
        kind, width, attn = layer["type"], self.width, self.attn_size
        if kind == "gss":
            self.gss(prefix, layer)
            return
        self.norm(f"{prefix}.attn_norm")
        for which, gain in (("q", 1.4), ("k", 1.0), ("v", 1.0)):
            self.linear(f"{prefix}.attn.{which}_proj", attn, width, gain=gain)
        sides = 1 if kind == "transformer" else 2
        self.linear(f"{prefix}.attn.o_proj", width, sides * attn, gain=1.3)
        self.scale(f"{prefix}.attn.scale")
        attention = self.config["attention"]
        if attention["position"] == "t5":
            head = math.sqrt(self.config["head_dim"])
            std = 1.0 / head if attention["qk_norm"] else head
            shape = (self.heads, attention["t5_num_buckets"])
            self.normal(f"{prefix}.attn.position_bias", *shape, std=std, f32_only=True)
        self.norm(f"{prefix}.ffn_norm")
        size = self.config["ffn_size"]
        self.linear(f"{prefix}.ffn.up_proj", size, width, gain=1.2)
        if self.config["ffn_activation"] in ("geglu", "swiglu"):
            self.linear(f"{prefix}.ffn.gate_proj", size, width, gain=1.2)
        self.linear(f"{prefix}.ffn.down_proj", width, size, gain=1.2)
        if kind != "transformer":
            self.linear(f"{prefix}.cross.q_proj", attn, width, gain=1.4)
            self.scale(f"{prefix}.cross.scale")
        if kind == "bst":
            self.bst(prefix, layer)
        elif kind == "brect":
            self.brect(prefix, layer["num_states"])

    def bst(self, prefix: str, layer: Config) -> None:
        width, context = self.width, layer["context"]
        multi_head, multi_filter = context == "multi_head", context == "multi_filter"
        self.norm(f"{prefix}.ssm_norm")
        self.norm(f"{prefix}.cross.norm")
        shape = (self.heads, self.config["head_dim"]) if multi_head else (self.attn_size,)
        for which in ("k", "v"):
            self.linear(f"{prefix}.cross.{which}_proj", *shape, width)
        if multi_filter:
            self.normal(f"{prefix}.cross.context_ids", layer["num_states"], width, std=0.5)
            self.normal(f"{prefix}.cross.initial_context", layer["num_states"], width)
        filters = self.heads if multi_head else layer["num_states"] if multi_filter else 1
        self.ssm(f"{prefix}.ssm", layer["ssm"], filters, width)

    def brect(self, prefix: str, states: int) -> None:
        width, attn = self.width, self.attn_size
        self.norm(f"{prefix}.state.norm")
        self.normal(f"{prefix}.state.ids", states, width, std=0.5)
        self.normal(f"{prefix}.state.initial", states, width)
        for which in ("q", "k", "v", "cross_q"):
            self.linear(f"{prefix}.state.{which}_proj", attn, width, gain=1.2)
        self.linear(f"{prefix}.state.o_proj", width, 2 * attn, gain=1.5)
        self.scale(f"{prefix}.state.scale")
        self.scale(f"{prefix}.state.cross_scale")
        self.normal(f"{prefix}.state.gate_bias", width, std=1.5, f32_only=True)

    def gss(self, prefix: str, layer: Config) -> None:
        width, inner, size = self.width, layer["inner_size"], layer["ssm_size"]
        self.norm(f"{prefix}.gss.norm")
        self.linear(f"{prefix}.gss.u_proj", inner, width, gain=1.3)
        self.linear(f"{prefix}.gss.v_proj", size, width, gain=1.3)
        self.linear(f"{prefix}.gss.gate_proj", inner, size, gain=1.3)
        self.linear(f"{prefix}.gss.out_proj", width, inner, gain=1.5)
        self.ssm(f"{prefix}.ssm", layer["ssm"], 1, size)

    def ssm(self, prefix: str, config: Config, filters: int, width: int) -> None:
        """Kernels of about unit energy, so that y is as large as u, slow and fast modes alike.

        One mode contributes |c b Δ|²/(1 − |Ā|²) to the energy, where Δ|b| stands for |B̄| and
        |Ā| = e^{Δ Re a}; c is chosen to make that 1/M, except that a mode slower than 256 tokens
        counts as one of 256.
        """
        rng, kind, shape = self.rng, config["kernel"], (filters, width)
        self.put(f"{prefix}.d", rng.normal(0.0, 0.5, shape), f32_only=True)
        if kind == "explicit":
            taps = config["length"]
            decay = np.exp(-log_uniform(rng, 0.01, 1.0, (*shape, 1)) * np.arange(taps))
            taps_values = rng.normal(size=(*shape, taps)) * decay
            energy = np.sqrt(np.sum(decay**2, axis=-1, keepdims=True))
            self.put(f"{prefix}.filter", taps_values / energy, f32_only=True)
            return
        if kind == "s5":
            self.s5(prefix, config["state_size"] // 2, filters, width)
            return
        modes = config["state_size"] if kind == "dss" else config["state_size"] // 2
        mode_shape = (modes,) if kind == "dss" else (*shape, modes)
        log_dt = rng.uniform(math.log(2e-3), math.log(0.5), shape)
        decay = log_uniform(rng, 0.05, 2.0, mode_shape)
        frequency = rng.uniform(-1.0, 1.0, mode_shape) * math.pi * np.arange(modes)
        self.put(f"{prefix}.log_dt", log_dt, f32_only=True)
        self.put(f"{prefix}.log_neg_a_real", np.log(decay), f32_only=True)
        self.put(f"{prefix}.a_imag", frequency, f32_only=True)
        step = np.exp(log_dt)[..., None]
        loss = np.maximum(-np.expm1(-2.0 * step * decay), 1 / 256)
        size = (np.sqrt(loss / modes) / step)[..., None]
        if kind == "s4" or (kind == "s4d" and chance(rng, 0.5)):
            self.put(f"{prefix}.b", self.complex_normal(*mode_shape) + [0.5, 0.0], f32_only=True)
        if kind == "s4":
            p = self.complex_normal(*mode_shape) * rng.uniform(0.3, 1.2)
            self.put(f"{prefix}.p", p, f32_only=True)
        name = "w" if kind == "dss" else "c"
        self.put(f"{prefix}.{name}", self.complex_normal(*shape, modes) * size, f32_only=True)

    def s5(self, prefix: str, modes: int, filters: int, width: int) -> None:
        """One state for all features; one mode in five models is a pure sum, λ = 0."""
        rng = self.rng
        step, decay = log_uniform(rng, 2e-3, 0.5, (modes,)), log_uniform(rng, 0.05, 2.0, (modes,))
        frequency = rng.uniform(-1.0, 1.0, modes) * math.pi * np.arange(modes)
        if chance(rng, 0.2):
            decay[0] = frequency[0] = 0.0
        loss = np.maximum(-np.expm1(-2.0 * step * decay), 1 / 256)
        size = np.sqrt(loss / width) / step
        self.put(f"{prefix}.lambda_real", -decay, f32_only=True)
        self.put(f"{prefix}.lambda_imag", frequency, f32_only=True)
        self.put(f"{prefix}.log_step", np.log(step), f32_only=True)
        b = self.complex_normal(modes, width) * size[:, None, None]
        self.put(f"{prefix}.b", b, f32_only=True)
        c = self.complex_normal(filters, width, modes) / math.sqrt(modes)
        self.put(f"{prefix}.c", c, f32_only=True)


def random_tokens(rng: Rng, config: Config) -> list[int]:
    """A prompt of 1 token, about one block, whole blocks, or up to 6 blocks and a ragged tail."""
    window = config["window"]
    blocks = between(rng, 2, 5)
    ragged = blocks * window + between(rng, 1, window)
    about_one = window + between(rng, -1, 1)
    length = pick(rng, *[ragged] * 10, *[blocks * window] * 4, *[about_one] * 3, 1)
    if window < 4 and length > 1:
        length += between(rng, 0, 20)
    return [int(t) for t in rng.integers(0, config["vocab_size"], max(1, length))]


def write_checkpoint(directory: Path, rng: Rng, config: Config, tensors: Tensors) -> None:
    """Stores each tensor as F32, F16 or BF16, in one file or in shards, in any order."""
    directory.mkdir(parents=True, exist_ok=True)
    palette = pick(rng, ("F32",), ("BF16",), ("F16",), ("F32", "F16", "BF16"))
    stored = {
        name: (values, "F32" if name in tensors.f32_only else pick(rng, *palette))
        for name, values in tensors.values.items()
    }
    names = list(stored)
    if chance(rng, 0.3):
        rng.shuffle(names)
    else:
        names.sort(key=lambda name: (stored[name][1] != "F32", name))
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if chance(rng, 0.7):
        whole = {name: stored[name] for name in names}
        safetensors_file.write(directory / "model.safetensors", whole, chance(rng, 0.8))
        return
    count = between(rng, 1, min(3, len(names)))
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    place = {name: files[i % count] for i, name in enumerate(names)}
    total = sum(
        safetensors_file.write(directory / file, {n: stored[n] for n in names if place[n] == file})
        for file in files
    )
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def generate(directory: Path, seed: int, index: int, layers: str) -> Config:
    """Writes checkpoint number `index` of a seed and returns its config."""
    rng = np.random.default_rng([seed, index, {"basic": 0, "all": 1}[layers]])
    config = random_config(rng, layers)
    tensors = Tensors(rng, config)
    write_checkpoint(directory, rng, config, tensors)
    (directory / "tokens.json").write_text(json.dumps(random_tokens(rng, config)) + "\n")
    return config


def summary(config: Config, tokens: int) -> str:
    """All options of a model on one line."""

    def describe(layer: Config) -> str:
        text = layer["type"]
        for key in ("context", "num_states", "inner_size", "ssm_size"):
            text += f":{layer[key]}" if key in layer else ""
        ssm = layer.get("ssm", {})
        return text + "".join(f"/{value}" for value in ssm.values())

    att = config["attention"]
    position = att["position"]
    if position == "t5":
        position += f"({att['t5_num_buckets']},{att['t5_max_distance']})"
    return (
        f"L={tokens} W={config['window']} D={config['hidden_size']} H={config['num_heads']} "
        f"dh={config['head_dim']} F={config['ffn_size']} V={config['vocab_size']} "
        f"{config['ffn_activation']} {att['scope']} self={int(att['include_self'])} "
        f"{att['empty_prefix']} qk_norm={int(att['qk_norm'])} {position} "
        f"tied={int(config['tie_embeddings'])} eps={config['norm_eps']:g} | "
        + ", ".join(describe(layer) for layer in config["layers"])
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="writes one random valid checkpoint")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--layers", choices=["basic", "all"], default="all")
    args = parser.parse_args()
    config = generate(args.directory, args.seed, args.index, args.layers)
    tokens = json.loads((args.directory / "tokens.json").read_text())
    print(summary(config, len(tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
