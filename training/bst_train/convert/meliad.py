"""The block-recurrent layer of github.com/google-research/meliad -> a brect layer.

This is the reference code of "Block-Recurrent Transformers" (arXiv 2203.07852). Arrays are named
by their path in the Flax parameter tree, joined with "/"; kernels are [in, out], heads in order in
the wide axis, D the width, A = H·dh, S states, F feed-forward width. Below `.../transformer{n}/`:

  tbase/_kvq/       pre_attn_layernorm/scale [D]  attention_scale [H]
                    {queries,keys,values,queries2}_layer/kernel [D, A]
  tbase/            attention_scale2 [H]  post_attn_mlp/output_layer/kernel [2A, D]
                    pre_ffn_layernorm/scale [D]  ffn/{hidden0 [D, F], output_layer [F, D]}/kernel
  recurrent_tbase/  the same without the feed-forward part, and _kvq/position_embeddings [S, D],
                    post_attn_mlp/gate_bias [D]
  recurrent_initial_state [S, D]   relative_positions/rel_embedding [H, 32]

`attention_scale` and `attention_scale2` exist with normalize_keys only. A layer without the
recurrent part becomes a `transformer` layer. Of the published configurations that is `bias_skip`
("fixed" gate, "skip" configuration); the other gates, the dual and single configurations, feedback,
external memory and position codes other than T5 biases or none are refused.

The weights do not show what follows from the configuration, and a layer is right only with
upstream's defaults for it: a causal mask over the window before the token without the token itself,
the Transformer-XL cache (zeros before the document), LayerNorm without its mean, a ReLU in the
feed-forward part and no activation before the attention's output projection, T5 distances up to
128. The window is upstream's window_length.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from .layer import ConversionError, ConvertedLayer

Array = np.ndarray

_T5_BUCKETS, _T5_MAX_DISTANCE = 32, 128

# Our name -> (upstream's, shape). Matrices are stored transposed.
_TOKEN_SIDE = {
    "attn_norm.weight": ("tbase/_kvq/pre_attn_layernorm/scale", "D"),
    "attn.q_proj.weight": ("tbase/_kvq/queries_layer/kernel", "AD"),
    "attn.k_proj.weight": ("tbase/_kvq/keys_layer/kernel", "AD"),
    "attn.v_proj.weight": ("tbase/_kvq/values_layer/kernel", "AD"),
    "attn.scale": ("tbase/_kvq/attention_scale", "H"),
    "attn.position_bias": ("relative_positions/rel_embedding", "HB"),
    "attn.o_proj.weight": ("tbase/post_attn_mlp/output_layer/kernel", "DO"),
    "ffn_norm.weight": ("tbase/pre_ffn_layernorm/scale", "D"),
    "ffn.up_proj.weight": ("tbase/ffn/hidden0/kernel", "FD"),
    "ffn.down_proj.weight": ("tbase/ffn/output_layer/kernel", "DF"),
}
_STATE_SIDE = {
    "cross.q_proj.weight": ("tbase/_kvq/queries2_layer/kernel", "AD"),
    "cross.scale": ("tbase/attention_scale2", "H"),
    "state.norm.weight": ("recurrent_tbase/_kvq/pre_attn_layernorm/scale", "D"),
    "state.ids": ("recurrent_tbase/_kvq/position_embeddings", "SD"),
    "state.initial": ("recurrent_initial_state", "SD"),
    "state.q_proj.weight": ("recurrent_tbase/_kvq/queries_layer/kernel", "AD"),
    "state.k_proj.weight": ("recurrent_tbase/_kvq/keys_layer/kernel", "AD"),
    "state.v_proj.weight": ("recurrent_tbase/_kvq/values_layer/kernel", "AD"),
    "state.cross_q_proj.weight": ("recurrent_tbase/_kvq/queries2_layer/kernel", "AD"),
    "state.scale": ("recurrent_tbase/_kvq/attention_scale", "H"),
    "state.cross_scale": ("recurrent_tbase/attention_scale2", "H"),
    "state.o_proj.weight": ("recurrent_tbase/post_attn_mlp/output_layer/kernel", "DO"),
    "state.gate_bias": ("recurrent_tbase/post_attn_mlp/gate_bias", "D"),
}
# Each learned scale, and the query projection whose head rows may take its sign.
_SCALES = {
    "attn.scale": "attn.q_proj.weight",
    "cross.scale": "cross.q_proj.weight",
    "state.scale": "state.q_proj.weight",
    "state.cross_scale": "state.cross_q_proj.weight",
}
# Why an array has no place in the format: the first of these that its name contains.
_REASONS = (
    ("recurrent_tbase/post_attn_mlp/gate_layer", "gate type \"full\"; only \"bias\" is known"),
    ("recurrent_tbase/post_attn_mlp/input_gate", "gate type \"lstm\"; only \"bias\" is known"),
    ("recurrent_tbase/post_attn_mlp/forget_gate", "gate type \"lstm\"; only \"bias\" is known"),
    ("recurrent_tbase/ffn", "the states have an FFN; only recurrent_skip_ffn is known"),
    ("recurrent_tbase/pre_ffn", "the states have an FFN; only recurrent_skip_ffn is known"),
    ("queries2_layer", "feedback: a layer without states attends to another's"),
    ("attention_scale2", "feedback: a layer without states attends to another's"),
    ("_cross_kv", "keys and values of their own for the cross-attention"),
    ("gate", "a gate in place of a residual connection"),
    ("memory", "external memory"),
    ("relative_positions", "position codes other than T5 biases"),
    ("/bias", "a bias; no linear layer and no norm has one"),
    ("/hidden", "a number of layers in an MLP other than 1 after attention, 2 in the FFN"),
)


def convert(
    arrays: Mapping[str, Array],
    prefix: str = "",
    num_heads: Optional[int] = None,
    window: Optional[int] = None,
    relative_positions: Optional[str] = None,
    attention_scale: Optional[str] = None,
) -> ConvertedLayer:
    """The layer whose array names begin with `prefix`, by default the one with recurrent states.

    num_heads           needed where no array shows it (neither T5 biases nor normalize_keys)
    window              upstream's window_length, if the checkpoint's window is to be checked
    relative_positions  "none" must be said for a layer without T5 biases; "rotary" is refused
    attention_scale     "raw" or "abs": how a negative scale acts. The code of 2022 multiplies by
                        it, that of 2025 by its magnitude.
    """
    stem = _find(arrays, prefix)
    layer = {key[len(stem) :]: np.asarray(arrays[key]) for key in arrays if key.startswith(stem)}
    recurrent = "recurrent_initial_state" in layer
    normalized = "tbase/_kvq/attention_scale" in layer
    names = {**_TOKEN_SIDE, **(_STATE_SIDE if recurrent else {})}
    if not normalized:
        names = {ours: entry for ours, entry in names.items() if ours not in _SCALES}
    position = _position(layer, stem, relative_positions)
    if position == "none":
        del names["attn.position_bias"]

    known = {upstream for upstream, _ in names.values()}
    for key in sorted(set(layer) - known):
        reasons = (reason for part, reason in _REASONS if part in key)
        raise ConversionError(f"{stem}{key}: {next(reasons, 'not known')}")
    tensors = {}
    for ours, (upstream, _) in names.items():
        if upstream not in layer:
            raise ConversionError(f"{stem}{upstream}: missing")
        tensors[ours] = layer[upstream].T if upstream.endswith("kernel") else layer[upstream]
    sizes = _sizes(tensors, names, stem, num_heads)
    head_dim = sizes["A"] // sizes["H"]
    for scale in sorted(set(_SCALES) & set(names)):
        _fold_sign(tensors, scale, head_dim, attention_scale, stem + names[scale][0])
    if position == "t5" and not normalized:
        # Upstream adds the bias to logits that have their 1/sqrt(dh) already, we add it before.
        tensors["attn.position_bias"] = tensors["attn.position_bias"] * np.sqrt(head_dim)

    model: Dict[str, Any] = {
        "hidden_size": sizes["D"],
        "num_heads": sizes["H"],
        "head_dim": head_dim,
        "ffn_size": sizes["F"],
        "ffn_activation": "relu",
        "norm_eps": 1e-6,
        "attention": {
            "scope": "sliding",
            "include_self": False,
            "empty_prefix": "zeros",
            "qk_norm": normalized,
            "position": position,
        },
    }
    if window is not None:
        model["window"] = window
    if position == "t5":
        model["attention"]["t5_num_buckets"] = _T5_BUCKETS
        model["attention"]["t5_max_distance"] = _T5_MAX_DISTANCE
    config: Dict[str, Any] = {"type": "transformer"}
    if recurrent:
        config = {"type": "brect", "num_states": sizes["S"], "gate": "fixed"}
    return ConvertedLayer("", tensors, config, model)


def _find(arrays: Mapping[str, Array], prefix: str) -> str:
    """What stands before the names of the layer: the only one below `prefix`, or the only one
    there that has states."""
    mark = "tbase/_kvq/keys_layer/kernel"
    stems = [
        key[: -len(mark)]
        for key in sorted(arrays)
        if key.startswith(prefix) and ("/" + key).endswith("/" + mark)
    ]
    if len(stems) > 1:
        stems = [stem for stem in stems if stem + "recurrent_initial_state" in arrays] or stems
    if not stems:
        raise ConversionError(f"prefix {prefix!r}: no array there is named .../{mark}")
    if len(stems) > 1:
        raise ConversionError(f"prefix {prefix!r}: it must single out one of {', '.join(stems)}")
    return stems[0]


def _position(layer: Mapping[str, Array], stem: str, told: Optional[str]) -> str:
    """ "t5" or "none". Only T5 biases show in the arrays."""
    if "relative_positions/rel_embedding" in layer:
        if told not in (None, "t5"):
            raise ConversionError(f"{stem}relative_positions/rel_embedding: not {told!r} but t5")
        return "t5"
    if told == "rotary":
        raise ConversionError(
            f"{stem}: rotary positions turn by π t 10000^(-2j/dh), which no rope_theta makes of "
            "t rope_theta^(-2j/dh)"
        )
    others = any(key.startswith("relative_positions/") for key in layer)
    if told != "none" and not others:
        raise ConversionError(
            f"{stem}relative_positions/rel_embedding: missing; say relative_positions none if that "
            "is what the layer was trained with"
        )
    return "none"


def _sizes(
    tensors: Mapping[str, Array],
    names: Mapping[str, Tuple[str, str]],
    stem: str,
    num_heads: Optional[int],
) -> Dict[str, int]:
    """The size behind each letter, after every shape has been checked."""
    sizes: Dict[str, int] = {"B": _T5_BUCKETS}
    if num_heads is not None:
        sizes["H"] = num_heads
    order: List[str] = sorted(names, key=lambda ours: len(names[ours][1]))
    for ours in order:
        upstream, letters = names[ours]
        shape = tensors[ours].shape
        fits = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape)
        )
        if not fits:
            expected = [sizes.get(letter, letter) for letter in letters]
            if upstream.endswith("kernel"):
                shape, expected = shape[::-1], expected[::-1]
            raise ConversionError(f"{stem}{upstream}: shape {list(shape)}, expected {expected}")
    if "H" not in sizes:
        raise ConversionError(f"{stem}: say num_heads; no array shows it")
    halves = 2 if "cross.q_proj.weight" in names else 1
    if sizes["O"] != halves * sizes["A"] or sizes["A"] % sizes["H"]:
        raise ConversionError(
            f"{stem}tbase/post_attn_mlp/output_layer/kernel: {sizes['O']} rows for {sizes['H']} "
            f"heads in {sizes['A']} columns of queries"
        )
    return sizes


def _fold_sign(
    tensors: Dict[str, Array], scale: str, head_dim: int, told: Optional[str], key: str
) -> None:
    """The format uses a scale's magnitude. A scale that acted with its sign hands a negative one
    to the head's queries, and to its position bias, which the scale multiplies as well."""
    sign = np.where(tensors[scale] < 0.0, -1.0, 1.0)
    if sign.min() > 0.0 or told == "abs":
        return
    if told != "raw":
        raise ConversionError(
            f"{key}: {tensors[scale].min():.6g} is negative; say whether the attention scale acts "
            "raw (code of 2022) or abs (2025)"
        )
    tensors[scale] = np.abs(tensors[scale])
    query = _SCALES[scale]
    tensors[query] = tensors[query] * np.repeat(sign, head_dim)[:, None]
    if scale == "attn.scale" and "attn.position_bias" in tensors:
        tensors["attn.position_bias"] = tensors["attn.position_bias"] * sign[:, None]
