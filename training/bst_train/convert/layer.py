"""What the converters share: reading foreign arrays, writing one converted layer."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import numpy as np
import torch

from ..checkpoint import (
    INDEX,
    is_float32_only,
    read_safetensors,
    safetensors_entries,
    write_safetensors,
)
from ..config import ModelConfig
from ..durable import replace_durably, write_durably

# What NumPy and PyTorch raise at a file that is cut off or of another kind.
_UNREADABLE = (ValueError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile)

_NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


class ConversionError(ValueError):
    """Weights that the format cannot hold, or that do not say enough; names the array."""


@dataclasses.dataclass(frozen=True)
class ConvertedLayer:
    """One layer, or the part of a layer whose tensor names begin with `part`."""

    part: str                        # "" for a whole layer, "ssm." for the kernel of one
    tensors: Dict[str, np.ndarray]   # float64, named without `layers.{n}.`
    layer: Dict[str, Any]            # the keys of layers[n] in config.json that belong to it
    model: Dict[str, Any]            # what config.json itself must say for the layer to be right
    left_out: Tuple[str, ...] = ()   # arrays beside it that the format has no place for


def read_arrays(path: Path) -> Dict[str, np.ndarray]:
    """The arrays of a .npz, .safetensors or PyTorch file by name, floating types as float64.

    PyTorch files are read without running code they contain; a Lightning checkpoint with other
    objects in it must be reduced to its `state_dict` first.
    """
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix, _read_torch)
    arrays = read(path)
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            arrays[name] = array.astype(np.float64)
        elif array.dtype.kind not in "biu":
            raise ConversionError(f"{path}: {name} has type {array.dtype}; make it a float32")
    return arrays


def _read_npz(path: Path) -> Dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.ndarray):
            with archive:
                return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise ConversionError(f"{path}: cannot be read as .npz ({error})") from error
    raise ConversionError(f"{path}: one array without a name; save it with np.savez")


def _read_torch(path: Path) -> Dict[str, np.ndarray]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{path}: holds more than tensors ({error})") from error
    except _UNREADABLE as error:
        raise ConversionError(f"{path}: cannot be read as a PyTorch file ({error})") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict):
        raise ConversionError(f"{path}: a {type(loaded).__name__}, not tensors by name")
    # NumPy has no bfloat16; float64 holds every other type exactly, too.
    return {
        name: (value.double() if value.is_floating_point() else value).detach().numpy()
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def _read_safetensors(path: Path) -> Dict[str, np.ndarray]:
    """More types than our own format has: upstream counters are integers."""
    arrays = {}
    types = {"BF16": 2, **{kind: np.dtype(t).itemsize for kind, t in _NUMPY_TYPES.items()}}
    for name, kind, shape, blob in safetensors_entries(path, types):
        if kind == "BF16":
            values = (np.frombuffer(blob, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(blob, _NUMPY_TYPES[kind])
        arrays[name] = values.reshape(shape)
    return arrays


def _stored(
    converted: ConvertedLayer, number: int, dtype: torch.dtype
) -> Dict[str, torch.Tensor]:
    """The tensors under their full names in the types they are stored in."""
    stored = {}
    for name, array in converted.tensors.items():
        name = f"layers.{number}.{name}"
        kind = torch.float32 if is_float32_only(name) else dtype
        stored[name] = torch.from_numpy(np.array(array, np.float64)).to(kind)
        if not torch.isfinite(stored[name]).all():
            raise ConversionError(f"{name}: a value is not finite as {kind}")
    return stored


def write_layer(
    path: Path, converted: ConvertedLayer, number: int, dtype: torch.dtype = torch.float32
) -> None:
    """Writes the tensors of layer `number` to `path`, and beside it, as .json, what config.json
    must say: {"number": n, "layer": its keys of layers[n], "model": keys outside `layers`}."""
    if path.suffix == ".json":
        raise ConversionError(f"{path}: the place of the piece of config.json, not of the tensors")
    write_safetensors(path, _stored(converted, number, dtype), {"format": "pt"})
    fragment = {"number": number, "layer": converted.layer, "model": converted.model}
    path.with_suffix(".json").write_text(json.dumps(fragment, indent=1) + "\n", encoding="utf-8")


def replace_layer(
    directory: Path, converted: ConvertedLayer, number: int, dtype: torch.dtype = torch.float32
) -> None:
    """Puts the layer, or its part, in the place of layer `number` of a checkpoint directory.

    Raises ConversionError, before anything is written, where the checkpoint's configuration
    disagrees with what the layer needs, or where it is in several files: readers would follow its
    index to the old layer. Everything else in the checkpoint stays as it is.
    """
    index, file = directory / INDEX, directory / "model.safetensors"
    if index.exists():
        raise ConversionError(
            f"{index}: holds a checkpoint in several files; merge them into {file.name} and remove "
            "the index first"
        )
    if not file.exists():
        raise ConversionError(f"{file}: missing; a checkpoint directory is needed")
    ModelConfig.load(directory / "config.json")   # so that every key is there from here on
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if not 0 <= number < len(config["layers"]):
        raise ConversionError(f"layer {number}: the checkpoint has {len(config['layers'])} layers")
    _check_model(config, converted.model, "")
    if converted.part:
        _check_filters(config, converted, number)
        config["layers"][number].update(converted.layer)
    else:
        config["layers"][number] = converted.layer
    ModelConfig.from_json(config)
    replaced = f"layers.{number}.{converted.part}"
    tensors = {
        name: tensor
        for name, tensor in read_safetensors(file).items()
        if not name.startswith(replaced)
    }
    tensors.update(_stored(converted, number, dtype))
    scratch = directory / "model.safetensors.partial"
    write_safetensors(scratch, tensors, {"format": "pt"})
    text = json.dumps(config, indent=1) + "\n"
    write_durably(directory / "config.json", text.encode("utf-8"))
    replace_durably(scratch, file)


def _check_model(config: Mapping[str, Any], needed: Mapping[str, Any], path: str) -> None:
    for key, value in needed.items():
        if isinstance(value, dict):
            _check_model(config[key], value, f"{path}{key}.")
        elif config[key] != value:
            raise ConversionError(
                f"config.json: {path}{key} is {config[key]!r}, the layer needs {value!r}"
            )


def _check_filters(config: Mapping[str, Any], converted: ConvertedLayer, number: int) -> None:
    """A layer with a state-space kernel, as many filters per feature, as many features."""
    layer = config["layers"][number]
    kernel = converted.layer["ssm"]["kernel"]
    if layer["type"] == "gss" and kernel == "s4d":
        expected = (1, layer["ssm_size"])
    elif layer["type"] == "bst":
        filters = {
            "single_head": 1,
            "multi_head": config["num_heads"],
            "multi_filter": layer.get("num_states"),
        }[layer["context"]]
        expected = (filters, config["hidden_size"])
    else:
        raise ConversionError(f"layer {number} is {layer['type']}, which has no {kernel} kernel")
    shape = converted.tensors["ssm.d"].shape
    if shape != expected:
        raise ConversionError(
            f"layer {number} has {expected[0]} filters of {expected[1]} features, "
            f"the kernel {shape[0]} of {shape[1]}"
        )
