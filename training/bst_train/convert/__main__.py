"""The command line: `python3 -m training.bst_train.convert s4|meliad --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

import torch

from . import meliad, s4
from .layer import read_arrays, replace_layer, write_layer


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", type=Path, help="a .npz, .safetensors or PyTorch file of arrays by name")
    add("--prefix", default="", help="what the names of the wanted layer's arrays begin with; "
                                     "needed where there are several layers")
    add("--layer", type=int, required=True, help="the number n of `layers.{n}.` in our checkpoint")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the tensors that may be rounded (default %(default)s)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, metavar="FILE.safetensors",
                       help="write the tensors here, and what config.json must say as FILE.json")
    where.add_argument("--into", type=Path, metavar="CHECKPOINT",
                       help="replace that layer of this checkpoint directory")


def _add_s4(parser: argparse.ArgumentParser) -> None:
    transforms = tuple(s4.TRANSFORMS)
    add = parser.add_argument
    add("--discretization", choices=("zoh", "bilinear"),
        help="upstream's `disc`; must be said for S4D, except the minimal one")
    add("--dt_transform", choices=transforms,
        help="must be said for v4; exp is the default of its classes, softplus of its configs")
    add("--real_transform", choices=transforms, default="exp", help="(default %(default)s)")
    add("--imag_transform", choices=transforms, default="none", help="(default %(default)s)")
    add("--dt_fast", action="store_true", help="the kernel was trained with dt_fast")
    add("--bandlimit", type=float, help="the bandlimit that the kernel was trained with")


def _add_meliad(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--num_heads", type=int, help="where no array shows it")
    add("--window", type=int, help="upstream's window_length; the checkpoint's is checked with it")
    add("--relative_positions", choices=("t5", "none", "rotary"),
        help="must be said for a layer without T5 biases")
    add("--attention_scale", choices=("raw", "abs"),
        help="how a negative attention scale acts: raw in the code of 2022, abs in that of 2025")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m training.bst_train.convert",
        description="Turns a layer that another project trained into a layer of a checkpoint.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, add_options, help_text in (
        ("s4", _add_s4, "an S4 or S4D kernel of state-spaces/s4: the `ssm.` part of a layer"),
        ("meliad", _add_meliad, "a layer of google-research/meliad, block-recurrent or plain"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        _add_common(command)
        add_options(command)
    options = vars(parser.parse_args(arguments))
    if options["layer"] < 0:
        parser.error(f"--layer: {options['layer']} is negative")
    path, number, into = options.pop("input"), options.pop("layer"), options.pop("into")
    output, dtype = options.pop("output"), getattr(torch, options.pop("dtype"))
    convert = {"s4": s4.convert, "meliad": meliad.convert}[options.pop("command")]
    try:
        converted = convert(read_arrays(path), **options)
        if into is None:
            write_layer(output, converted, number, dtype)
        else:
            replace_layer(into, converted, number, dtype)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in converted.left_out:
        print(f"left out: {name}")
    print(f"{output or into}: layer {number}, {len(converted.tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
