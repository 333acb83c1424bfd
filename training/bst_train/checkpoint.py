"""Checkpoint directories: config.json, model.safetensors and, with SentencePiece, tokenizer.model.

The safetensors format is small enough to be read and written here without a dependency: eight
bytes of header length, a JSON header, and the tensors' bytes.

Exported matrices are BF16 and everything whose rounding would show is F32: the SSM parameters
(rounding log_dt to BF16 would move a time step by up to 1.6 %), the attention scales and the
position biases. `load_model` reads any checkpoint of the format. An explicit filter is written as
its taps, and is nothing but taps when it is read again: the function that it was trained as stays
in the run directory.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import numpy as np
import torch

from .config import ConfigError, ModelConfig
from .durable import replace_durably, write_durably
from .kernels import SsmOptions
from .kernels.explicit import ExplicitFilter
from .model import LanguageModel
from .tokenizer import Tokenizer, load_tokenizer

PathLike = Union[str, Path]

INDEX = "model.safetensors.index.json"   # of a checkpoint in several files

_DTYPES: Dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def is_float32_only(name: str) -> bool:
    """Whether the format demands F32 for the tensor of that name."""
    return ".ssm." in name or name.endswith(("scale", ".position_bias", ".gate_bias"))


def checkpoint_tensors(model: LanguageModel) -> Dict[str, torch.Tensor]:
    """The model's tensors by their names in a checkpoint; explicit filters as their taps."""
    tensors = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, ExplicitFilter) and not module.free_taps:
            with torch.no_grad():
                taps = module.taps()
            tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.positional.")}
            tensors[f"{name}.filter"] = taps
    return tensors


def write_safetensors(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Optional[Dict[str, str]] = None
) -> None:
    """Writes F32, F16 and BF16 tensors to a safetensors file, in the order of the mapping."""
    header: Dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    blobs = []
    offset = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # NumPy has no bfloat16: pass the bits through an integer type.
        bits = torch.int32 if tensor.dtype == torch.float32 else torch.int16
        blob = tensor.view(bits).numpy().tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for blob in blobs:
            file.write(blob)


def safetensors_entries(
    path: PathLike, types: Mapping[str, int]
) -> Iterator[Tuple[str, str, List[int], memoryview]]:
    """(name, type, shape, bytes) of every tensor of a safetensors file, in the header's order.

    `types` are the types that the caller takes, with the bytes of a number. Raises ValueError
    naming the file, and the tensor if it is one's fault.
    """
    data = memoryview(Path(path).read_bytes())
    size = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 + size:
            raise ValueError("shorter than its header")
        header = json.loads(bytes(data[8 : 8 + size]))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a safetensors file") from error
    body = data[8 + size :]
    for name, entry in header.items():
        try:
            kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            within = 0 <= begin <= end <= len(body)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name} lacks a type, a shape or its offsets") from error
        if kind not in types:
            raise ValueError(f"{path}: {name} has type {kind}, not one of {', '.join(types)}")
        if not within or end - begin != count * types[kind]:
            raise ValueError(
                f"{path}: {name} is bytes {begin} to {end} of {len(body)}, which are not a {kind} "
                f"of shape {shape}"
            )
        yield name, kind, shape, body[begin:end]


def read_safetensors(path: PathLike) -> Dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in their stored types."""
    tensors: Dict[str, torch.Tensor] = {}
    types = {name: 4 if dtype == torch.float32 else 2 for name, dtype in _DTYPES.items()}
    for name, kind, shape, blob in safetensors_entries(path, types):
        bits = np.int32 if types[kind] == 4 else np.int16
        array = np.frombuffer(blob, dtype=bits).copy()
        tensors[name] = torch.from_numpy(array).view(_DTYPES[kind]).reshape(shape)
    return tensors


def _read_all(directory: Path) -> Dict[str, torch.Tensor]:
    index = directory / INDEX
    if not index.exists():
        return read_safetensors(directory / "model.safetensors")
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: Dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors.update(read_safetensors(directory / shard))
    return tensors


def export_model(
    model: LanguageModel,
    directory: PathLike,
    tokenizer_model: Optional[PathLike] = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes `model` as a checkpoint directory.

    `tokenizer_model` is copied to the name that the configuration gives. Files are replaced one by
    one, the weights last. Raises ValueError, before anything is written, where a tensor is not
    finite, or the directory holds an index, which readers would follow to other weights.
    """
    directory = Path(directory)
    if (directory / INDEX).exists():
        raise ValueError(f"{directory / INDEX}: holds a checkpoint in several files; remove it")
    config = model.config
    tensors = {
        name: tensor.to(torch.float32 if is_float32_only(name) else dtype)
        for name, tensor in checkpoint_tensors(model).items()
    }
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: a value is not finite as {tensor.dtype}")
    directory.mkdir(parents=True, exist_ok=True)
    if config.tokenizer_file is not None:
        if tokenizer_model is None:
            raise ValueError("the configuration names a tokenizer file, but none was given")
        target = directory / config.tokenizer_file
        if not (target.exists() and target.samefile(tokenizer_model)):
            write_durably(target, Path(tokenizer_model).read_bytes())
    text = json.dumps(config.to_json(), indent=1) + "\n"
    write_durably(directory / "config.json", text.encode("utf-8"))
    scratch = directory / "model.safetensors.partial"
    write_safetensors(scratch, tensors, {"format": "pt"})
    replace_durably(scratch, directory / "model.safetensors")


def load_model(directory: PathLike) -> LanguageModel:
    """Reads a checkpoint directory, in float32.

    Raises ConfigError or ValueError when the configuration or a tensor is not what it must be.
    """
    directory = Path(directory)
    config = ModelConfig.load(directory / "config.json")
    tensors = _read_all(directory)
    options = [SsmOptions(taps=True, with_b=SsmOptions.of_tensors(tensors, index).with_b)
               for index in range(len(config.layers))]
    model = LanguageModel(config, options)
    expected = model.state_dict()
    for name in sorted(set(expected) ^ set(tensors)):
        raise ConfigError(f"{name}: {'missing' if name in expected else 'superfluous'} tensor")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(
                f"{name}: shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        if is_float32_only(name) and tensor.dtype != torch.float32:
            raise ConfigError(f"{name}: must be F32")
        if name.endswith(".ssm.lambda_real") and bool((tensor > 0).any()):
            raise ConfigError(f"{name}: a growing mode")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def load_model_and_tokenizer(directory: PathLike) -> Tuple[LanguageModel, Tokenizer]:
    """The model of a checkpoint directory with its vocabulary.

    The special tokens are those of the configuration, as they are in serving. Raises ValueError
    where the vocabulary has ids that the model does not have.
    """
    model = load_model(directory)
    config = model.config
    if config.tokenizer_file is None:
        tokenizer = load_tokenizer(None)
        tokenizer.vocab_size = config.vocab_size
    else:
        path = Path(directory) / config.tokenizer_file
        tokenizer = load_tokenizer(path)
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"{path}: has {tokenizer.vocab_size} pieces, the model {config.vocab_size}"
            )
    tokenizer.bos_id = config.bos_token_id
    tokenizer.eos_id = config.eos_token_id
    tokenizer.pad_id = config.pad_token_id
    return model, tokenizer
