"""Draws `bst-bench layers --json` (and, with --decode, its --decode-tokens run) as one PNG.

    python3 tests/bench/plot_layers.py layers.json --decode decode.json --output layers.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("layers", type=Path, help="of bst-bench layers --json")
    parser.add_argument("--decode", type=Path, help="of bst-bench layers --decode-tokens N --json")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    args = parser.parse_args()

    panels = 1 if args.decode is None else 2
    figure, axes = plt.subplots(1, panels, figsize=(6.4 * panels, 4.4), squeeze=False)
    data = json.loads(args.layers.read_text(encoding="utf-8"))
    curves: Dict[str, List[Tuple[int, float]]] = defaultdict(list)
    for row in data["forward"]:
        curves[row["layer"]].append((row["tokens"], row["seconds"]))
    axis = axes[0][0]
    if len(curves) > 10:  # colours of the default cycle
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name, points in curves.items():
        points.sort()
        axis.plot([n for n, _ in points], [s * 1e3 for _, s in points], marker="o", ms=3,
                  label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("tokens")
    axis.set_ylabel("forward time of one layer, ms")
    axis.set_title(f"{data['backend']}, {data['weights']} weights", fontsize=9)
    axis.grid(True, which="both", alpha=0.2)
    axis.legend(fontsize=7)
    if args.decode is not None:
        decode = json.loads(args.decode.read_text(encoding="utf-8"))
        axis = axes[0][1]
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
        for row in decode["decode"]:
            step = row["tokens_per_stretch"]
            axis.plot([step * (i + 1) for i in range(len(row["seconds_per_token"]))],
                      [s * 1e6 for s in row["seconds_per_token"]], label=row["layer"])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens generated")
        axis.set_ylabel("time per token, microseconds")
        axis.set_title("one token at a time", fontsize=9)
        axis.grid(True, alpha=0.2)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
