"""Draws `bst-bench targets --json` files as one PNG: prefill against length, and decode, beside their limits.

    python3 tests/bench/plot_targets.py targets.json --output targets.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("targets", type=Path, help="of bst-bench targets --json")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    args = parser.parse_args()

    data = json.loads(args.targets.read_text(encoding="utf-8"))
    rows: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    for row in data["rows"]:
        if row["what"] != "state":
            rows[row["types"]].append(row)
    figure, (prefill, decode) = plt.subplots(1, 2, figsize=(12.0, 4.4))
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for index, (types, points) in enumerate(rows.items()):
        color = colors[index % len(colors)]
        curve = sorted((p["tokens"], p["tokens_per_second"], p["limit"]) for p in points if p["what"] == "prefill")
        if curve:
            prefill.plot([n for n, _, _ in curve], [r for _, r, _ in curve], marker="o", ms=3, color=color, label=types)
            prefill.axhline(curve[0][2], color=color, linestyle=":", linewidth=1)
        bars = [p for p in points if p["what"] != "prefill"]
        for i, point in enumerate(bars):
            at = i * (len(rows) + 1) + index
            decode.bar(at, point["tokens_per_second"], color=color, label=types if i == 0 else None)
            decode.plot([at - 0.4, at + 0.4], [point["limit"]] * 2, color="black", linestyle=":", linewidth=1)
            decode.text(at, point["tokens_per_second"], f"{point['tokens_per_second']:.0f}", ha="center", fontsize=7)
    prefill.set_xscale("log", base=2)
    prefill.set_xlabel("context length, tokens")
    prefill.set_ylabel("prefill, tokens per second (dotted: limit)")
    prefill.set_ylim(bottom=0)
    prefill.set_title(data["backend"], fontsize=9)
    prefill.grid(True, alpha=0.2)
    prefill.legend(fontsize=7)
    names = list(dict.fromkeys(p["what"] for points in rows.values() for p in points if p["what"] != "prefill"))
    decode.set_xticks([i * (len(rows) + 1) + (len(rows) - 1) / 2 for i in range(len(names))], names)
    decode.set_ylabel("tokens per second, all streams (dotted: limit)")
    decode.grid(True, axis="y", alpha=0.2)
    decode.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
