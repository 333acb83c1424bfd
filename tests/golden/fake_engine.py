#!/usr/bin/env python3
"""The evaluator behind the command line of an engine, to test the driver compare_engine.py.

    fake_engine.py --backend=reference|cpu --weights=f32|bf16|auto [--split=K] DIR [DIR...]

With --split the prompt and every decode step are evaluated as sequences of their own, so a case
that passes also shows that the evaluator is causal. --fault plants an error for the driver to find:
`noise` adds 1e-3 to the logits of the cpu backend, `decode` shifts the decode steps by one, `crash`
fails for checkpoints whose number is a multiple of five.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import evaluator


def run(directory: Path, backend: str, split: int | None, fault: str | None) -> None:
    if fault == "crash" and int(directory.name[-4:]) % 5 == 0:
        raise ValueError("planted failure")
    tokens = json.loads((directory / "tokens.json").read_text())
    model = evaluator.Model(directory)
    logits = model.logits(tokens[:split])
    for count in range(len(logits) + 1, len(tokens) + 1):
        last = model.logits(tokens[: count - 1 if fault == "decode" else count])[-1:]
        logits = np.concatenate([logits, last])
    if fault == "noise" and backend == "cpu":
        logits = logits + 1e-3 * np.abs(logits).max()
    np.save(directory / f"logits.{backend}.npy", logits.astype(np.float32))


def main() -> int:
    parser = argparse.ArgumentParser(description="the evaluator with an engine's command line")
    parser.add_argument("--backend", choices=["reference", "cpu"], required=True)
    parser.add_argument("--weights", choices=["f32", "bf16", "auto"], required=True)
    parser.add_argument("--split", type=int)
    parser.add_argument("--fault", choices=["noise", "decode", "crash"])
    parser.add_argument("directories", type=Path, nargs="+")
    args = parser.parse_args()
    status = 0
    for directory in args.directories:
        try:
            run(directory, args.backend, args.split, args.fault)
        except (OSError, ValueError, KeyError) as error:
            print(f"{directory}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
