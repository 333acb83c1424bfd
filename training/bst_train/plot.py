"""Loss curves as PNG files. Does nothing, with a message, where matplotlib is missing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Dict, List, Mapping, Tuple


def _read(path: Path) -> Tuple[List[float], List[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows: List[Dict[str, str]] = list(csv.DictReader(file))
    column = "loss" if rows and "loss" in rows[0] else "nats_per_token"
    try:
        return [float(r["tokens"]) / 1e6 for r in rows], [float(r[column]) for r in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a curve, columns of numbers named tokens and loss or nats_per_token"
        ) from error


def _smooth(values: List[float], weight: float) -> List[float]:
    """Exponential moving average, corrected for its start."""
    smooth: List[float] = []
    total = norm = 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        smooth.append(total / norm)
    return smooth


def plot_curves(curves: Mapping[str, Path], output: Path, smoothing: float = 0.6) -> None:
    """Draws one smoothed line per CSV file (columns tokens and loss or nats_per_token)."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed: no picture")
        return
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=90)
    low, high = float("inf"), 0.0
    for name, path in curves.items():
        tokens, losses = _read(path)
        if not tokens:
            continue
        is_valid = "valid" in Path(path).stem
        line = losses if is_valid else _smooth(losses, smoothing)
        axes.plot(tokens, line, label=name, linewidth=1.2, marker="o" if is_valid else None,
                  markersize=3)
        late = line[len(line) // 20 :]
        low, high = min(low, min(late)), max(high, max(late))
    if high > 0.0:
        axes.set_ylim(low - 0.05, high + 0.05)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(output)
    pyplot.close(figure)
