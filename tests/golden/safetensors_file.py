"""A small reader and writer of safetensors files, with numpy alone.

Layout: a little-endian u64 n, n bytes of JSON header {name: {dtype, shape, data_offsets}}, padded
with blanks to a multiple of 8, then the data, which the offsets count in and cover without holes.
BF16, which numpy lacks, is the upper half of a float32.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

Array = np.ndarray


def read(path: Path) -> dict[str, Array]:
    """All tensors of one file; F32, F16 and BF16 all come back as float64."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        data, dtype = raw[begin:end], info["dtype"]
        if dtype == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif dtype in ("F32", "F16"):
            values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype])
        else:
            raise ValueError(f"{path}: {name} has unsupported dtype {dtype}")
        tensors[name] = values.astype(np.float64).reshape(info["shape"])
    return tensors


def encode(values: Array, dtype: str) -> bytes:
    """The bytes of a tensor stored as F32, F16 or BF16, rounded to nearest, ties to even."""
    if dtype != "BF16":
        return np.ascontiguousarray(values, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write(path: Path, tensors: dict[str, tuple[Array, str]], metadata: bool = True) -> int:
    """Writes {name: (values, dtype)} in the order given; returns the number of data bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    chunks, offset = [], 0
    for name, (values, dtype) in tensors.items():
        chunk = encode(values, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    return offset
