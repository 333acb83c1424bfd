"""The length study: its figures, on results small enough to be worked out by hand; its code corpus;
and which vocabulary its models are judged and exported with."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import lzma
import math
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

import torch

from training.bst_train.corpus import read_texts, tokenize
from training.bst_train.tokenizer import SentencePieceTokenizer, train_sentencepiece
from training.bst_train.trainer import TrainConfig, Trainer, load_training_checkpoint
from training.study import make_code_corpus, report, study
from training.tests.tiny import TRANSFORMER, random_text, tiny_config

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


class CodeCorpusTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root, self.output = Path(directory.name) / "lib", Path(directory.name) / "corpus"
        self.seen = ["kept.py", "package/a.py", "package/deep/b.py"]
        self.held_out = [
            name if name.endswith(".py") else f"{name}/__init__.py"
            for name in make_code_corpus.HELD_OUT
        ]
        for name in self.seen + self.held_out + ["package/test/c.py", "small.py"]:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            size = 100 if name == "small.py" else make_code_corpus.MIN_BYTES
            path.write_text(f"# body of {name}\n" + "x" * size)

    def _make(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            make_code_corpus.main(["--root", str(self.root), "--output", str(self.output)])

    def test_no_file_is_in_both(self) -> None:
        self._make()
        for split, names, others in (
            ("train", self.seen, self.held_out), ("valid", self.held_out, self.seen),
        ):
            text = "\n".join(read_texts(self.output / f"code.{split}.jsonl.xz"))
            for name in names:
                self.assertEqual(text.count(f"# body of {name}\n"), 1, name)
            for name in others + ["package/test/c.py", "small.py"]:
                self.assertNotIn(f"# body of {name}\n", text)

    def test_a_file_is_there_when_it_is_whole(self) -> None:
        """The study takes what is there; what an interruption left must not be."""
        written = []

        def dumps(document: Dict[str, str], **options: Any) -> str:
            written.append(document["title"])
            if document["title"] in make_code_corpus.HELD_OUT[1:]:
                raise KeyboardInterrupt
            return json.JSONEncoder(**options).encode(document)

        with mock.patch.object(make_code_corpus.json, "dumps", dumps):
            with self.assertRaises(KeyboardInterrupt):
                self._make()
        self.assertGreater(len(written), 2)
        self.assertTrue((self.output / "code.train.jsonl.xz").exists())
        self.assertFalse((self.output / "code.valid.jsonl.xz").exists())


class VocabularyTest(unittest.TestCase):
    """A model is judged and exported with the vocabulary of its run, or not at all."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.work = Path(directory.name)
        for name, seed, pieces in (("own", 1, 300), ("other", 7, 300), ("large", 1, 310)):
            train_sentencepiece(
                [random_text(seed, 400)], self.work / f"{name}.model", pieces, 1 << 20)
        for domain in study.DOMAINS:
            folder = self.work / "corpus" if domain == "code" else self.work
            folder.mkdir(exist_ok=True)
            with lzma.open(folder / f"{domain}.valid.jsonl.xz", "wt", encoding="utf-8") as file:
                file.write(json.dumps({"text": random_text(3, 200)}) + "\n")
        tokenizer = SentencePieceTokenizer(self.work / "own.model")
        corpus = tokenize(self.work / "books.valid.jsonl.xz", tokenizer, self.work / "cache")
        config = tiny_config(
            (TRANSFORMER,), vocab_size=300, tokenizer_file="tokenizer.model", bos_token_id=1,
            eos_token_id=2, pad_token_id=0,
        )
        options = TrainConfig(
            max_tokens=100, segment=32, sequences=1, lanes=1, min_tail=0, log_every=1)
        self.checkpoint = self.work / "runs" / "tiny" / "checkpoint.pt"
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer(config, options, [corpus], [1.0], None, tokenizer, self.checkpoint.parent).run()

    def _evaluate(self, tokenizer: str) -> None:
        args = argparse.Namespace(
            work=self.work, text=self.work, max_tokens=100, engine=self.work / "bin",
            tokenizer=Path(tokenizer) if tokenizer == "byte" else self.work / f"{tokenizer}.model",
        )
        with mock.patch.object(study, "HERE", self.work), \
                mock.patch.object(study, "engine_losses") as engine, \
                contextlib.redirect_stdout(io.StringIO()):
            engine.side_effect = lambda _, __, documents: (
                torch.full((len(ids) - 1,), 2.0).numpy() for ids in documents)
            study.evaluate(args, "tiny")

    def _refused(self, tokenizer: str, pattern: str) -> None:
        with self.assertRaisesRegex(ValueError, pattern):
            self._evaluate(tokenizer)
        self.assertFalse((self.work / "export").exists())
        self.assertFalse((self.work / "results").exists())

    def test_another_vocabulary_is_refused(self) -> None:
        trained = "checkpoint.pt was trained with the vocabulary"
        self._refused("byte", "vocabulary is tokenizer.model, the tokenizer's is bytes")
        self._refused("large", "vocabulary has 310 pieces, the model 300")
        self._refused("other", trained)
        # A configuration with a vocabulary, of a run that says it was trained on bytes.
        state = load_training_checkpoint(self.checkpoint)
        torch.save({**state, "tokenizer": "byte"}, self.checkpoint)
        self._refused("own", f"{trained} byte, not")
        # Runs of before do not say; what their configuration says still counts.
        del state["tokenizer"]
        torch.save(state, self.checkpoint)
        self._refused("large", "vocabulary has 310 pieces, the model 300")

    def test_its_own_is_exported_and_judged(self) -> None:
        self._evaluate("own")
        exported = self.work / "export" / "tiny" / "tokenizer.model"
        self.assertEqual(exported.read_bytes(), (self.work / "own.model").read_bytes())
        written = json.loads((self.work / "results" / "tiny.json").read_text())
        self.assertEqual(len(written["documents"]), len(study.DOMAINS))
        for document in written["documents"]:
            self.assertEqual(sum(document["nats"]), 2.0 * sum(document["tokens"]))
        with open(self.work / "results" / "tiny.curve.csv", newline="") as file:
            self.assertGreater(len(list(csv.DictReader(file))), 0)


if __name__ == "__main__":
    unittest.main()
