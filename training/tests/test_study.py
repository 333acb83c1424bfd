"""The length study's figures, on results small enough to be worked out by hand."""

from __future__ import annotations

import json
import math
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List

from training.study import report

EDGES = (0, 512, 4096, 16384, 65536)
SIZES = [b - a for a, b in zip(EDGES, EDGES[1:])]


def result(model: str, nats: List[List[float]]) -> Dict[str, Any]:
    """One book per list, with these nats per token in each stretch that it fills; then a stub."""
    documents = []
    for values in nats:
        tokens = SIZES[: len(values)] + [0] * (len(SIZES) - len(values))
        documents.append({
            "domain": "books",
            "tokens": tokens,
            "bytes": [2 * n for n in tokens],
            "nats": [n * v for n, v in zip(tokens, values)] + [0.0] * (len(SIZES) - len(values)),
        })
    documents.append(
        {"domain": "code", "tokens": [300, 0, 0, 0], "bytes": [900, 0, 0, 0],
         "nats": [3000.0, 0.0, 0.0, 0.0]}
    )
    return {"model": model, "parameters": 1234567, "edges": list(EDGES), "documents": documents,
            "training_nats_per_token_last_tenth": 4.5}


class ReportTest(unittest.TestCase):
    BASELINE = result("transformer", [[4.0, 3.0, 3.0, 3.0], [5.0, 4.0]])
    OTHER = result("other", [[4.1, 2.8, 2.8, 2.5], [5.1, 4.0]])

    def test_only_documents_that_are_long_enough_count(self) -> None:
        indices, values = report.per_document(self.BASELINE, (512, 4096))
        self.assertEqual(indices, [0, 1])
        self.assertEqual(values.tolist(), [3.0, 4.0])
        self.assertEqual(report.per_document(self.BASELINE, (16384, 65536))[0], [0])
        _, up_to = report.per_document(self.BASELINE, (0, 4096))
        self.assertAlmostEqual(up_to[1], (512 * 5.0 + 3584 * 4.0) / 4096)

    def test_tables(self) -> None:
        text = report.tables([self.BASELINE, self.OTHER])
        self.assertIn("512: 2 (2 books); 4k: 2 (2 books); 16k: 1 (1 books)", text)
        # 4.5 ± 0.5, and the differences +0.1 of both documents.
        self.assertIn(f"| transformer | 1.235 M | 4.500 ± 0.500 ({math.exp(4.5):.1f}) |", text)
        self.assertIn("| other | +0.100 ± 0.000 | -0.100 ± 0.100 | -0.200 | -0.500 |", text)
        # Up to 4k: the mean of 3.125 and 4.125, at two bytes a token.
        self.assertIn(f"| 3.625 / {math.exp(3.625):.1f} / {3.625 / 2 / math.log(2):.3f} |", text)

    def test_readme_is_updated_in_place(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for r in (self.BASELINE, self.OTHER):
                (directory / f"{r['model']}.json").write_text(json.dumps(r))
                (directory / f"{r['model']}.curve.csv").write_text(
                    "step,tokens,loss,lr\n1,4096,8.0,0.1\n2,8192,7.0,0.2\n")
            readme = directory / "README.md"
            readme.write_text(f"before\n{report._BEGIN}\nold\n{report._END}\nafter\n")
            report.write(directory, readme)
            text = readme.read_text()
            self.assertTrue(text.startswith("before\n") and text.endswith("after\n"))
            self.assertNotIn("old", text)
            self.assertIn("| other |", text)


if __name__ == "__main__":
    unittest.main()
