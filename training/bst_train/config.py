"""ModelConfig: the `config.json` of a checkpoint.

The engine refuses unknown keys, missing keys, wrong types and values out of range; so does this
module.

Symbols, used in every module of this package:

  V vocabulary · D width · H heads · dh head size · A = H * dh · F feed-forward width
  W block length, which is also the attention window · S context vectors or recurrent states
  C filters per feature: 1 single head, H multi head, S multi filter · T taps of an explicit filter
  N real state size of a filter · M = N / 2 stored conjugate pairs, or modes in general
  B rows of a batch · L tokens of a segment
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

SCOPES = ("sliding", "block")
EMPTY_PREFIXES = ("masked", "zeros")
POSITIONS = ("none", "t5", "rope")
ACTIVATIONS = ("relu", "gelu", "geglu", "swiglu")
LAYER_TYPES = ("transformer", "bst", "brect", "gss")
CONTEXTS = ("single_head", "multi_head", "multi_filter")
# Discretisations that each kernel with a state knows; the first is the default.
DISCRETIZATIONS: Dict[str, Tuple[str, ...]] = {
    "s4d": ("zoh", "bilinear"),
    "dss": ("zoh",),
    "s4": ("bilinear",),
    "s5": ("zoh", "bilinear"),
}
KERNELS = (*DISCRETIZATIONS, "explicit")
GSS_KERNELS = ("s4d", "dss")
MAX_ROPE_THETA = 1e15


class ConfigError(ValueError):
    """A configuration that the format does not allow; the message names the key."""


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """What a token attends to within its window, and how."""

    scope: str = "sliding"            # "sliding": the newest W keys; "block": keys of the block
    include_self: bool = True         # distances 0..W-1, or 1..W
    empty_prefix: str = "masked"      # keys before the document: absent, or zeros taking part
    qk_norm: bool = True              # l2-normalised queries and keys, learned scale per head
    position: str = "rope"
    t5_num_buckets: int = 32
    t5_max_distance: int = 128
    rope_theta: float = 10000.0


@dataclasses.dataclass(frozen=True)
class SsmConfig:
    """A causal convolution: `length` taps for the explicit kernel, `state_size` for the others."""

    kernel: str = "s4d"
    state_size: Optional[int] = None        # N; s4d, dss, s4, s5
    discretization: Optional[str] = None    # the kernel's default if it has one
    length: Optional[int] = None            # T; explicit

    def __post_init__(self) -> None:
        if self.discretization is None and self.kernel in DISCRETIZATIONS:
            object.__setattr__(self, "discretization", DISCRETIZATIONS[self.kernel][0])


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One layer. A field is None where the layer's kind does not have it."""

    type: str = "transformer"
    context: Optional[str] = None           # bst
    num_states: Optional[int] = None        # S; brect, and bst with a multi-filter context
    inner_size: Optional[int] = None        # gss: width of the gated branch
    ssm_size: Optional[int] = None          # gss: E, the features of its SSM
    ssm: Optional[SsmConfig] = None         # bst and gss

    def filters(self, heads: int) -> int:
        """C of a layer with an SSM."""
        if self.context == "multi_head":
            return heads
        if self.context == "multi_filter":
            assert self.num_states is not None
            return self.num_states
        return 1

    def to_json(self) -> Dict[str, Any]:
        values = _without_none(dataclasses.asdict(self))
        if self.type == "brect":
            values["gate"] = "fixed"
        if self.ssm is not None:
            values["ssm"] = _without_none(values["ssm"])
        return values


def _without_none(values: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    head_dim: int
    ffn_size: int
    ffn_activation: str
    window: int
    logit_scale: float
    layers: Tuple[LayerConfig, ...]
    attention: AttentionConfig = AttentionConfig()
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    tokenizer_file: Optional[str] = None   # None: bytes
    bos_token_id: Optional[int] = None
    eos_token_id: Optional[int] = None
    pad_token_id: Optional[int] = None

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def attention_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def gated_ffn(self) -> bool:
        return self.ffn_activation in ("geglu", "swiglu")

    def to_json(self) -> Dict[str, Any]:
        """The contents of `config.json`."""
        tokenizer = (
            {"type": "byte"}
            if self.tokenizer_file is None
            else {"type": "sentencepiece", "file": self.tokenizer_file}
        )
        return {
            "model_type": "block_state_transformer",
            "format_version": 1,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "ffn_size": self.ffn_size,
            "ffn_activation": self.ffn_activation,
            "window": self.window,
            "norm_eps": self.norm_eps,
            "logit_scale": self.logit_scale,
            "tie_embeddings": self.tie_embeddings,
            "attention": dataclasses.asdict(self.attention),
            "layers": [layer.to_json() for layer in self.layers],
            "tokenizer": tokenizer,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @staticmethod
    def from_json(data: Any) -> "ModelConfig":
        """Parses the contents of a `config.json`. Raises ConfigError naming the key."""
        root = _Reader(data, "config")
        root.choice("model_type", ("block_state_transformer",))
        if root.integer("format_version") != 1:
            raise ConfigError("format_version: only 1 is known")
        attention = root.section("attention")
        attention_config = AttentionConfig(
            scope=attention.choice("scope", SCOPES),
            include_self=attention.boolean("include_self"),
            empty_prefix=attention.choice("empty_prefix", EMPTY_PREFIXES),
            qk_norm=attention.boolean("qk_norm"),
            position=attention.choice("position", POSITIONS),
            t5_num_buckets=attention.integer("t5_num_buckets"),
            t5_max_distance=attention.integer("t5_max_distance"),
            rope_theta=attention.number("rope_theta"),
        )
        attention.finish()
        tokenizer = root.section("tokenizer")
        tokenizer_file: Optional[str] = None
        if tokenizer.choice("type", ("byte", "sentencepiece")) == "sentencepiece":
            tokenizer_file = tokenizer.string("file")
        tokenizer.finish()
        config = ModelConfig(
            vocab_size=root.integer("vocab_size"),
            hidden_size=root.integer("hidden_size"),
            num_heads=root.integer("num_heads"),
            head_dim=root.integer("head_dim"),
            ffn_size=root.integer("ffn_size"),
            ffn_activation=root.choice("ffn_activation", ACTIVATIONS),
            window=root.integer("window"),
            norm_eps=root.number("norm_eps"),
            logit_scale=root.number("logit_scale"),
            tie_embeddings=root.boolean("tie_embeddings"),
            layers=tuple(_parse_layer(layer) for layer in root.sections("layers")),
            attention=attention_config,
            tokenizer_file=tokenizer_file,
            bos_token_id=root.optional_integer("bos_token_id"),
            eos_token_id=root.optional_integer("eos_token_id"),
            pad_token_id=root.optional_integer("pad_token_id"),
        )
        root.finish()
        return config

    @staticmethod
    def load(path: Union[str, Path]) -> "ModelConfig":
        """Raises ConfigError naming the file, and the key if it is one's fault."""
        try:
            return ModelConfig.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error


class _Reader:
    """Typed access to the keys of a JSON object, which must all be used."""

    def __init__(self, data: Any, name: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{name}: not an object")
        self._data = dict(data)
        self._name = name

    def _take(self, key: str) -> Any:
        if key not in self._data:
            raise ConfigError(f"{self._name}.{key}: missing")
        return self._data.pop(key)

    def _wrong(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"{self._name}.{key}: not {expected}")

    def integer(self, key: str) -> int:
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer")
        return value

    def optional_integer(self, key: str) -> Optional[int]:
        if key in self._data and self._data[key] is None:
            del self._data[key]
            return None
        return self.integer(key)

    def number(self, key: str) -> float:
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def string(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Optional[str] = None) -> str:
        if default is not None and key not in self._data:
            return default
        value = self.string(key)
        if value not in choices:
            raise ConfigError(f"{self._name}.{key}: {value!r} is not one of {', '.join(choices)}")
        return value

    def section(self, key: str) -> "_Reader":
        return _Reader(self._take(key), f"{self._name}.{key}")

    def sections(self, key: str) -> List["_Reader"]:
        value = self._take(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return [_Reader(v, f"{self._name}.{key}[{i}]") for i, v in enumerate(value)]

    def finish(self) -> None:
        if self._data:
            raise ConfigError(f"{self._name}.{sorted(self._data)[0]}: unknown key")


def _parse_layer(reader: _Reader) -> LayerConfig:
    kind = reader.choice("type", LAYER_TYPES)
    values: Dict[str, Any] = {}
    if kind == "bst":
        values["context"] = reader.choice("context", CONTEXTS)
    if kind == "brect" or values.get("context") == "multi_filter":
        values["num_states"] = reader.integer("num_states")
    if kind == "brect":
        reader.choice("gate", ("fixed",))
    if kind == "gss":
        values["inner_size"] = reader.integer("inner_size")
        values["ssm_size"] = reader.integer("ssm_size")
    if kind in ("bst", "gss"):
        kernels = KERNELS if kind == "bst" else GSS_KERNELS
        values["ssm"] = _parse_ssm(reader.section("ssm"), kernels)
    reader.finish()
    return LayerConfig(kind, **values)


def _parse_ssm(reader: _Reader, kernels: Sequence[str]) -> SsmConfig:
    kernel = reader.choice("kernel", kernels)
    if kernel == "explicit":
        config = SsmConfig(kernel, length=reader.integer("length"))
    else:
        allowed = DISCRETIZATIONS[kernel]
        config = SsmConfig(
            kernel,
            state_size=reader.integer("state_size"),
            discretization=reader.choice("discretization", allowed, default=allowed[0]),
        )
    reader.finish()
    return config


def _as_float32(value: float) -> float:
    """As the engine and the model hold it; infinite beyond the range."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.inf


def _validate(config: ModelConfig) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    attention = config.attention
    for key in ("vocab_size", "hidden_size", "num_heads", "head_dim", "ffn_size", "window"):
        require(getattr(config, key) > 0, f"{key}: must be positive")
    require(config.ffn_activation in ACTIVATIONS, f"ffn_activation: {config.ffn_activation!r}")
    require(0 < _as_float32(config.norm_eps) < math.inf, "norm_eps: must be positive in float32")
    require(math.isfinite(_as_float32(config.logit_scale)), "logit_scale: must be finite in float32")
    require(len(config.layers) > 0, "layers: at least one")
    require(attention.scope in SCOPES, f"attention.scope: {attention.scope!r}")
    require(attention.empty_prefix in EMPTY_PREFIXES, "attention.empty_prefix")
    require(attention.position in POSITIONS, f"attention.position: {attention.position!r}")
    require(
        attention.scope == "sliding" or attention.empty_prefix == "masked",
        "attention.empty_prefix: \"zeros\" needs the sliding scope",
    )
    buckets, reach = attention.t5_num_buckets, attention.t5_max_distance
    require(buckets > 0 and buckets % 2 == 0, "attention.t5_num_buckets: must be even")
    require(buckets // 2 < reach, "attention.t5_max_distance: must exceed t5_num_buckets / 2")
    require(
        0 < _as_float32(attention.rope_theta) and attention.rope_theta <= MAX_ROPE_THETA,
        f"attention.rope_theta: {attention.rope_theta} is not positive in float32 and at most "
        f"{MAX_ROPE_THETA:g}",
    )
    require(
        attention.position != "rope" or config.head_dim % 2 == 0,
        "head_dim: RoPE needs an even one",
    )
    require(
        config.tokenizer_file is not None or config.vocab_size >= 256,
        "vocab_size: a byte vocabulary has at least 256 tokens",
    )
    # It is written to, and read from, the checkpoint directory and nowhere else.
    file = config.tokenizer_file
    require(
        file is None or (file not in ("", ".", "..") and not set(file) & set("/\\\0")),
        f"tokenizer.file: {file!r} is not the name of a file in the checkpoint directory",
    )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(config, key)
        require(token is None or 0 <= token < config.vocab_size, f"{key}: outside the vocabulary")
    for index, layer in enumerate(config.layers):
        _validate_layer(layer, f"layers[{index}]")


def _validate_layer(layer: LayerConfig, name: str) -> None:
    """A layer has exactly the fields of its kind, and they are in range."""
    if layer.type not in LAYER_TYPES:
        raise ConfigError(f"{name}.type: {layer.type!r}")
    if layer.type == "bst" and layer.context not in CONTEXTS:
        raise ConfigError(f"{name}.context: {layer.context!r}")
    present = {
        "context": layer.type == "bst",
        "num_states": layer.type == "brect" or layer.context == "multi_filter",
        "inner_size": layer.type == "gss",
        "ssm_size": layer.type == "gss",
        "ssm": layer.type in ("bst", "gss"),
    }
    for key, wanted in present.items():
        value = getattr(layer, key)
        if (value is not None) != wanted:
            raise ConfigError(f"{name}.{key}: {'missing' if wanted else 'not in this layer'}")
        if isinstance(value, int) and value <= 0:
            raise ConfigError(f"{name}.{key}: must be positive")
    if layer.ssm is not None:
        kernels = KERNELS if layer.type == "bst" else GSS_KERNELS
        _validate_ssm(layer.ssm, kernels, f"{name}.ssm")


def _validate_ssm(ssm: SsmConfig, kernels: Sequence[str], name: str) -> None:
    if ssm.kernel not in kernels:
        raise ConfigError(f"{name}.kernel: {ssm.kernel!r} is not one of {', '.join(kernels)}")
    size_key, other_key = "state_size", "length"
    if ssm.kernel == "explicit":
        size_key, other_key = other_key, size_key
    size = getattr(ssm, size_key)
    if getattr(ssm, other_key) is not None:
        raise ConfigError(f"{name}.{other_key}: not for the kernel {ssm.kernel}")
    if size is None or size <= 0:
        raise ConfigError(f"{name}.{size_key}: must be positive")
    if ssm.kernel in ("s4d", "s4", "s5") and size % 2 != 0:
        raise ConfigError(f"{name}.state_size: must be even")
    allowed = DISCRETIZATIONS.get(ssm.kernel, (None,))
    if ssm.discretization not in allowed:
        raise ConfigError(f"{name}.discretization: {ssm.discretization!r}")
