"""Draws `bst-bench targets --json` as one PNG: prefill and decode against context length, decode against
the number of streams, and both against threads; dotted, the limits measured in the same run.

    bst-bench targets --threads 1 2 --streams 1 2 4 8 16 32 64 128 --json targets.json
    python3 tests/bench/plot_targets.py targets.json --output targets.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Row = Dict[str, Any]


def draw(axis: plt.Axes, rows: List[Row], x: str, title: str, x_label: str) -> None:
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for index, types in enumerate(dict.fromkeys(row["types"] for row in rows)):
        curve = sorted((row[x], row["tokens_per_second"], row["limit"]) for row in rows if row["types"] == types)
        numbers = [point[0] for point in curve]
        color = colors[index % len(colors)]
        axis.plot(numbers, [point[1] for point in curve], marker="o", ms=3, color=color, label=types)
        axis.plot(numbers, [point[2] for point in curve], linestyle=":", marker=".", ms=3, color=color)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x_label)
    axis.set_xticks(sorted({row[x] for row in rows}), [f"{n:,}" for n in sorted({row[x] for row in rows})], fontsize=7)
    axis.minorticks_off()
    axis.set_ylabel("tokens per second")
    axis.grid(True, alpha=0.2)
    axis.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("targets", type=Path, help="of bst-bench targets --json")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    args = parser.parse_args()

    data = json.loads(args.targets.read_text(encoding="utf-8"))
    rows = [row for row in data["rows"] if row["what"] != "state"]
    most_threads = max(machine["threads"] for machine in data["machine"])
    backend = next(m["backend"] for m in data["machine"] if m["threads"] == most_threads)
    most_streams = max(row["streams"] for row in rows)
    prefill = [row for row in rows if row["what"] == "prefill"]
    decode = [row for row in rows if row["what"] == "decode"]
    depth = next(row["tokens"] for row in reversed(decode) if row["streams"] == most_streams)
    shortest = min(row["tokens"] for row in prefill)

    def of(selected: List[Row], **values: Any) -> List[Row]:
        return [row for row in selected if all(row[key] == value for key, value in values.items())]

    figure, axes = plt.subplots(2, 2, figsize=(12.0, 8.4))
    draw(axes[0][0], of(prefill, threads=most_threads), "tokens", f"prefill, {backend}", "context length, tokens")
    draw(axes[0][1], of(decode, threads=most_threads, streams=1), "tokens", f"decode of one stream, {backend}",
         "context length, tokens")
    draw(axes[1][0], of(decode, threads=most_threads, tokens=depth), "streams",
         f"decode at {depth} tokens, {backend}", "streams together")
    draw(axes[1][1], of(prefill, tokens=shortest), "threads", "", "threads")
    for line, types in zip(axes[1][1].get_lines()[::2], dict.fromkeys(row["types"] for row in prefill)):
        line.set_label(f"{types} prefill of {shortest}")
        curve = sorted((row["threads"], row["tokens_per_second"])
                       for row in of(decode, types=types, streams=most_streams, tokens=depth))
        axes[1][1].plot([n for n, _ in curve], [rate for _, rate in curve], marker="s", ms=3, linestyle="--",
                        color=line.get_color(), label=f"{types} decode of {most_streams}")
    axes[1][1].set_title(f"against threads: prefill of {shortest} tokens, decode of {most_streams} streams (dashed)",
                         fontsize=9)
    axes[1][1].set_ylim(top=1.25 * axes[1][1].get_ylim()[1])  # room for the legend
    axes[1][1].legend(fontsize=7, ncol=2, loc="upper left")
    figure.suptitle("dotted: the machine's limit, measured in the same run", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
