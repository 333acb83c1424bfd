"""Tables and pictures of the length study, from the files in results/.

A document counts for a stretch of positions when it reaches the stretch's end, and then with all of
its tokens there, so that every document has the same weight: the figure is the mean over documents
of nats per token, and its error the standard error of that mean. Differences between two models are
taken document by document first; documents differ far more than models do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from training.bst_train.plot import plot_curves

BASELINE = "transformer"
# Positions from .. to, in tokens from the document's start.
RANGES = ((0, 512), (512, 4096), (4096, 16384), (16384, 65536))
CUMULATIVE = ((0, 512), (0, 4096), (0, 16384), (0, 65536))
_BEGIN, _END = "<!-- tables: written by study.py -->", "<!-- end of tables -->"

Result = Dict[str, Any]


def _name(length: int) -> str:
    return str(length) if length < 1024 else f"{length // 1024}k"


def per_document(
    result: Result, stretch: Tuple[int, int], key: str = "nats", per: str = "tokens",
    domain: str = "all",
) -> Tuple[List[int], np.ndarray]:
    """(index, nats per token, or per byte) of every document that reaches the stretch's end."""
    begin, end = (result["edges"].index(position) for position in stretch)
    indices, values = [], []
    for index, document in enumerate(result["documents"]):
        if domain not in ("all", document["domain"]):
            continue
        if sum(document["tokens"][:end]) == stretch[1]:
            indices.append(index)
            values.append(sum(document[key][begin:end]) / sum(document[per][begin:end]))
    return indices, np.array(values)


def _mean_and_error(values: np.ndarray) -> Tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _with_error(values: np.ndarray, form: str) -> str:
    """mean ± error, and the mean alone of a single document."""
    mean, error = _mean_and_error(values)
    return format(mean, form) + (f" ± {error:.3f}" if len(values) > 1 else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _counts(result: Result) -> str:
    parts = []
    for _, end in CUMULATIVE:
        indices, _ = per_document(result, (0, end))
        domains = [result["documents"][i]["domain"] for i in indices]
        kinds = ", ".join(f"{domains.count(d)} {d}" for d in dict.fromkeys(domains))
        parts.append(f"{_name(end)}: {len(indices)} ({kinds})")
    return "Held-out documents that reach a length: " + "; ".join(parts) + "."


def _differences(results: Sequence[Result], baseline: Result, domain: str) -> List[str]:
    lines = []
    for result in results:
        cells = [result["model"]]
        for stretch in RANGES:
            indices, values = per_document(result, stretch)
            _, reference = per_document(baseline, stretch)
            keep = [domain in ("all", result["documents"][i]["domain"]) for i in indices]
            if not any(keep):
                cells.append("-")
                continue
            cells.append(_with_error((values - reference)[keep], "+.3f"))
        lines.append(_row(cells))
    return lines


def tables(results: Sequence[Result]) -> str:
    """Markdown."""
    baseline = next(r for r in results if r["model"] == BASELINE)
    others = [r for r in results if r is not baseline]
    lines = [_counts(baseline), "", "**Nats per token, by position** (mean over documents ± "
             "standard error; perplexity in brackets)", ""]
    header = ["model", "parameters"] + [f"{_name(a)}–{_name(b)}" for a, b in RANGES]
    lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
    for result in results:
        cells = [result["model"], f"{result['parameters'] / 1e6:.3f} M"]
        for stretch in RANGES:
            values = per_document(result, stretch)[1]
            cells.append(f"{_with_error(values, '.3f')} ({math.exp(values.mean()):.1f})")
        lines.append(_row(cells))
    for domain in ("books", "latex", "code"):
        lines += ["", f"**Up to a context length**, {domain}: nats per token / perplexity / bits per "
                  "byte over all positions below it", ""]
        header = ["model"] + [_name(b) for _, b in CUMULATIVE]
        lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
        for result in results:
            cells = [result["model"]]
            for stretch in CUMULATIVE:
                values = per_document(result, stretch, domain=domain)[1]
                if not len(values):
                    cells.append("–")
                    continue
                mean = float(values.mean())
                bytes_mean = per_document(result, stretch, per="bytes", domain=domain)[1].mean()
                bits = float(bytes_mean) / math.log(2)
                cells.append(f"{mean:.3f} / {math.exp(mean):.1f} / {bits:.3f}")
            lines.append(_row(cells))
    last = ", ".join(f"{r['model']} {r['training_nats_per_token_last_tenth']:.3f}" for r in results)
    lines += ["", f"Training loss over the last tenth, nats per token: {last}."]
    for domain in ("all", "books", "latex", "code"):
        text = "all documents" if domain == "all" else domain
        lines += ["", f"**Difference to the {BASELINE}** in nats per token, {text}, document by "
                  "document (mean ± standard error; negative is better)", ""]
        header = ["model"] + [f"{_name(a)}–{_name(b)}" for a, b in RANGES]
        lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
        lines += _differences(others, baseline, domain)
    return "\n".join(lines)


def plot_positions(results: Sequence[Result], output: Path) -> None:
    """Nats per token by position, and the difference to the baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    baseline = next(r for r in results if r["model"] == BASELINE)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), dpi=90)
    edges = baseline["edges"]
    bins = list(zip(edges, edges[1:]))
    middles = [math.sqrt(max(a, edges[1] / 2) * b) for a, b in bins]
    for result in results:
        # The same documents at all positions, so that only the position differs.
        longest, _ = per_document(result, (0, edges[-1]))
        lines: List[List[float]] = [[], [], []]
        for stretch in bins:
            indices, values = per_document(result, stretch)
            _, reference = per_document(baseline, stretch)
            keep = [index in longest for index in indices]
            lines[0].append(float(values[keep].mean()))
            mean, error = _mean_and_error((values - reference)[keep])
            lines[1].append(mean)
            lines[2].append(0.0 if math.isnan(error) else error)
        left.plot(middles, lines[0], marker="o", markersize=3, linewidth=1.2, label=result["model"])
        right.errorbar(middles, lines[1], lines[2], marker="o", markersize=3, linewidth=1.2,
                       capsize=2, label=result["model"])
    for axes, label in ((left, "nats per token"), (right, f"difference to the {BASELINE}")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position in the document, tokens")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output)
    pyplot.close(figure)


def write(results_dir: Path, readme: Path) -> None:
    """Redraws results/*.png and replaces the tables in the README."""
    results = [json.loads(path.read_text()) for path in sorted(results_dir.glob("*.json"))]
    results.sort(key=lambda r: (r["model"] != BASELINE, r["model"]))
    if not results or results[0]["model"] != BASELINE:
        raise SystemExit(f"{results_dir}: no result of the {BASELINE}")
    plot_positions(results, results_dir / "positions.png")
    plot_curves({r["model"]: results_dir / f"{r['model']}.curve.csv" for r in results},
                results_dir / "curves.png", smoothing=0.9)
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    readme.write_text(f"{before}{_BEGIN}\n{tables(results)}\n{_END}{after}", encoding="utf-8")
