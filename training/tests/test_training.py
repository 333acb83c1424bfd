"""Corpora, tokenisers, the training loop, checkpoints and the evaluator."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import math
import os
import tempfile
import unittest
from pathlib import Path
from typing import List, Tuple
from unittest import mock

import numpy as np
import torch

from training.bst_train import cli
from training.bst_train.checkpoint import (
    export_model,
    is_float32_only,
    load_model,
    load_model_and_tokenizer,
    read_safetensors,
    write_safetensors,
)
from training.bst_train.config import AttentionConfig, ConfigError, LayerConfig
from training.bst_train.corpus import (
    LaneSampler,
    Source,
    TokenizedCorpus,
    count_shared,
    read_texts,
    tokenize,
)
from training.bst_train.evaluate import document_losses, evaluate, token_byte_lengths
from training.bst_train.generate import sample
from training.bst_train.kernels import SsmOptions
from training.bst_train.model import LanguageModel
from training.bst_train.optimizer import (
    OptimizerConfig,
    make_optimizers,
    orthogonalize,
    schedule,
)
from training.bst_train.tokenizer import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    train_sentencepiece,
)
from training.bst_train.trainer import (
    TrainConfig,
    Trainer,
    check_tokenizer,
    export_run,
    load_training_checkpoint,
    model_from_run,
)
from training.tests.tiny import (
    BRECT,
    TRANSFORMER,
    bst,
    gss,
    random_model,
    random_text,
    tiny_config,
)


def write_corpus(path: Path, texts: List[str]) -> Path:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"title": "t", "text": text}, ensure_ascii=False) + "\n")
    return path


class TemporaryDirectoryTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)


class CorpusTest(TemporaryDirectoryTest):
    def test_reads_all_compressions_and_caches(self) -> None:
        texts = [random_text(1, 30), "", "ä"]
        for name in ("a.jsonl", "a.jsonl.xz", "a.jsonl.gz"):
            path = write_corpus(self.directory / name, texts)
            self.assertEqual(list(read_texts(path)), texts)
        first = tokenize(path, ByteTokenizer(), self.directory / "cache")
        again = tokenize(path, ByteTokenizer(), self.directory / "cache")
        self.assertEqual(len(first), 3)
        self.assertEqual(first.document(2).tolist(), [256, 0xC3, 0xA4, 257])
        self.assertEqual(first.bytes.tolist(), [len(t.encode()) for t in texts])
        self.assertTrue(np.array_equal(first.ids, again.ids))

    def test_files_of_one_name_and_size_have_their_own_tokens(self) -> None:
        for text in ("first", "other"):
            (self.directory / text).mkdir()
            path = write_corpus(self.directory / text / "a.jsonl", [text])
            corpus = tokenize(path, ByteTokenizer(), self.directory / "cache")
            self.assertEqual(bytes(corpus.document(0)[1:-1].tolist()).decode(), text)

    def test_held_out_documents_that_are_trained_on_are_counted(self) -> None:
        train = [self._corpus([40, 70], 0), self._corpus([15, 20], 100)]
        self.assertEqual(count_shared(train, self._corpus([40, 70], 200)), 0)
        self.assertEqual(count_shared(train, self._corpus([15, 21, 30], 100)), 1)
        wide = dataclasses.replace(train[1], ids=train[1].ids.astype(np.int32))
        self.assertEqual(count_shared(train, wide), 2)

    def test_names_a_bad_line(self) -> None:
        path = self.directory / "bad.jsonl"
        path.write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "bad.jsonl:2"):
            list(read_texts(path))

    def test_names_a_text_that_utf8_cannot_hold(self) -> None:
        path = self.directory / "half.jsonl"
        path.write_text('{"text": "a"}\n{"text": "b\\ud83d"}\n', encoding="utf-8")
        with self.assertRaisesRegex(ValueError, f"^{path}:2: character 2 of .* surrogate"):
            list(read_texts(path))

    def test_names_a_damaged_file(self) -> None:
        texts = [random_text(seed, 3000) for seed in range(3)]
        for name in ("a.jsonl.xz", "a.jsonl.gz", "a.jsonl"):
            path = write_corpus(self.directory / name, texts)
            whole = path.read_bytes()
            middle = len(whole) // 2
            damages = {"another kind": b"\xff" + whole, "flipped": whole[:middle] + bytes(
                b ^ 0xFF for b in whole[middle : middle + 200]) + whole[middle + 200 :]}
            if name != "a.jsonl":
                damages["cut off"] = whole[:middle]
            for damage, content in damages.items():
                path.write_bytes(content)
                with self.subTest(name, damage=damage), self.assertRaisesRegex(
                    ValueError, f"^{path}: cannot be read behind line [0-2]: "
                ):
                    list(read_texts(path))

    def test_source_argument(self) -> None:
        self.assertEqual(Source.parse("a.jsonl:0.25"), Source("a.jsonl", 0.25))
        self.assertEqual(Source.parse("a:b.jsonl"), Source("a:b.jsonl", 1.0))
        self.assertEqual(Source.parse("a.jsonl", math.inf), Source("a.jsonl", math.inf))
        self.assertEqual(Source.parse("a:b.jsonl", math.inf), Source("a:b.jsonl", math.inf))
        self.assertEqual(Source.parse("a.jsonl:1", math.inf), Source("a.jsonl", 1.0))

    def test_a_weight_is_positive_and_finite(self) -> None:
        for weight in ("0", "-0.0", "-1", "nan", "inf", "-inf", "1e999"):
            for default in (1.0, math.inf):
                with self.assertRaisesRegex(ValueError, f"a.jsonl:{weight}: '{weight}' behind"):
                    Source.parse(f"a.jsonl:{weight}", default)
        with self.assertRaisesRegex(ValueError, ":0.5: no path"):
            Source.parse(":0.5")
        corpora = [self._corpus([40], 0), self._corpus([90], 100)]
        options = dict(segment=16, sequences=1, lanes=1, max_segments=0, min_tail=0, seed=1)
        for weight in (0.0, -1.0, math.nan, math.inf):
            with self.assertRaisesRegex(ValueError, f"corpus 2: the weight {weight} is not"):
                LaneSampler(corpora, [1.0, weight], ByteTokenizer(), **options)
        with self.assertRaisesRegex(ValueError, "2 corpora need as many weights, not 1"):
            LaneSampler(corpora, [1.0], ByteTokenizer(), **options)

    def test_a_corpus_without_anything_to_predict_is_refused(self) -> None:
        """As empty texts are without bos and eos; there would be no piece to deal."""
        one_token = TokenizedCorpus(np.array([7]), np.array([0, 1, 1]), np.array([1, 0]))
        with self.assertRaisesRegex(ValueError, "corpus 2: no document has a token to predict"):
            self._sampler([self._corpus([40], 0), one_token])

    def _sampler(self, corpora: List[TokenizedCorpus], **changes: int) -> LaneSampler:
        options = dict(segment=16, sequences=2, lanes=4, max_segments=0, min_tail=0, seed=3)
        options.update(changes)
        weights = [3.0, 1.0][: len(corpora)]
        return LaneSampler(corpora, weights, ByteTokenizer(), **options)  # type: ignore[arg-type]

    def _corpus(self, lengths: List[int], first_id: int) -> TokenizedCorpus:
        """Document i is bos, then the number first_id + i over and over, then eos."""
        documents = [
            np.array([256] + [first_id + i] * n + [257]) for i, n in enumerate(lengths)
        ]
        bounds = np.cumsum([0] + [len(d) for d in documents])
        return TokenizedCorpus(np.concatenate(documents), bounds, np.array(lengths))

    def test_segments_follow_on_within_a_lane(self) -> None:
        corpus = self._corpus([40, 70, 15, 100], 0)
        sampler = self._sampler([corpus])
        last = {}
        predicted = 0
        for _ in range(400):
            batch = sampler.next_batch()
            for row, lane in enumerate(batch.lanes):
                counted = int((batch.targets[row] >= 0).sum())
                predicted += counted
                self.assertGreater(counted, 0)
                if batch.fresh[row]:
                    self.assertEqual(batch.inputs[row, 0], 256)
                else:
                    self.assertEqual(batch.inputs[row, 0], last[lane])
                self.assertTrue(
                    (batch.inputs[row, 1:counted] == batch.targets[row, : counted - 1]).all()
                )
                last[lane] = batch.targets[row, counted - 1]
        self.assertGreater(predicted, 400 * 16)

    def test_pieces_cover_a_document_once(self) -> None:
        corpus = self._corpus([1000], 7)
        sampler = self._sampler([corpus], max_segments=4, lanes=2)
        sampler._refill(0)
        pieces = sorted(sampler._queues[0], key=lambda p: p.begin)
        self.assertEqual(pieces[0].begin, 0)
        self.assertEqual(pieces[-1].end, 1002)
        for left, right in zip(pieces, pieces[1:]):
            self.assertEqual(left.end - 1, right.begin)
            self.assertLessEqual(left.end - left.begin, 4 * 16 + 1)

    def test_mixture_weights(self) -> None:
        corpora = [self._corpus([50] * 40, 0), self._corpus([50] * 40, 100)]
        sampler = self._sampler(corpora)
        for _ in range(600):
            sampler.next_batch()
        first, second = sampler.tokens_dealt()
        self.assertAlmostEqual(first / (first + second), 0.75, delta=0.02)

    def test_state_is_exact(self) -> None:
        corpora = [self._corpus([40, 70, 15, 100], 0), self._corpus([90, 20], 100)]
        one = self._sampler(corpora, max_segments=2)
        for _ in range(37):
            one.next_batch()
        other = self._sampler(corpora, max_segments=2, seed=99)
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for _ in range(60):
            a, b = one.next_batch(), other.next_batch()
            self.assertEqual(a.lanes, b.lanes)
            self.assertTrue(np.array_equal(a.inputs, b.inputs))
            self.assertTrue(np.array_equal(a.targets, b.targets))
            self.assertTrue(np.array_equal(a.fresh, b.fresh))

    def test_state_fits_only_its_corpora(self) -> None:
        corpora = [self._corpus([40, 70, 15], 0), self._corpus([90, 20], 100)]
        sampler = self._sampler(corpora)
        sampler.next_batch()
        state = json.loads(json.dumps(sampler.state_dict()))
        for other, pattern in (
            (self._corpus([90], 100), "corpus 2 had 2 documents .* now 1"),
            (self._corpus([90, 21], 100), "corpus 2 had 114 tokens .* now 115"),
            (self._corpus([90, 20], 101), "corpus 2 had other text"),
            (self._corpus([20, 90], 100), "corpus 2 had other text"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                self._sampler([corpora[0], other]).load_state_dict(state)
        with self.assertRaisesRegex(ValueError, "made with 4 lanes, not 6"):
            self._sampler(corpora, lanes=6).load_state_dict(state)
        with self.assertRaisesRegex(ValueError, "made with 2 corpora, not 1"):
            self._sampler(corpora[:1]).load_state_dict(state)
        with self.assertRaisesRegex(ValueError, "segments of 16 tokens, not 32"):
            self._sampler(corpora, segment=32).load_state_dict(state)
        narrow = TokenizedCorpus(
            corpora[1].ids.astype(np.uint16), corpora[1].bounds, corpora[1].bytes
        )
        self._sampler([corpora[0], narrow]).load_state_dict(state)
        # States of before say nothing of what they were made with.
        del state["corpora"], state["segment"]
        self._sampler([corpora[0], self._corpus([90], 100)], segment=32).load_state_dict(state)


class TokenizerTest(TemporaryDirectoryTest):
    TEXTS = ["", " ", "\n\n\n a  b\t\r\n c ", "naïve 漢字 \U0001f600", "1234 \\frac{1}{2}$x$  \n"]

    def test_bytes(self) -> None:
        tokenizer = ByteTokenizer()
        for text in self.TEXTS:
            self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)

    def test_sentencepiece(self) -> None:
        path = self.directory / "tokenizer.model"
        train_sentencepiece([random_text(i, 400) for i in range(5)], path, 400, 1 << 20)
        tokenizer = SentencePieceTokenizer(path)
        self.assertEqual(
            (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id),
            (400, 0, 1, 2),
        )
        for text in self.TEXTS + [random_text(9, 300)]:
            ids = tokenizer.encode(text)
            self.assertEqual(tokenizer.decode(ids), text)
            # Cutting at line breaks is not visible.
            self.assertEqual(tokenizer._processor.encode(text), ids)
            lengths = token_byte_lengths(tokenizer, np.array(ids, dtype=np.int64))
            self.assertEqual(int(lengths.sum()), len(text.encode("utf-8")))


    def test_what_makes_no_vocabulary_is_said(self) -> None:
        path = self.directory / "tokenizer.model"
        for texts, size, pattern in (
            ([random_text(1, 40)], 30000, "vocab_size 30000: Vocabulary size too high"),
            ([random_text(1, 40)], 10, "vocab_size 10: Vocabulary size is smaller than required"),
            (["", "\n"], 300, "vocab_size 300: there is no text"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                train_sentencepiece(texts, path, size, 1 << 20)
            self.assertFalse(path.exists())
        path.write_text("not one")
        with self.assertRaisesRegex(ValueError, f"{path}: not a SentencePiece model"):
            SentencePieceTokenizer(path)

    def test_one_megabyte_is_not_the_whole_file(self) -> None:
        path = write_corpus(self.directory / "text.jsonl", ["a b\n" * 75_000] * 6)
        module = "training.bst_train.tokenizer"
        for argument, documents in ((str(path), 6), (f"{path}:1", 4), (f"{path}:0.5", 2)):
            with mock.patch(f"{module}.train_sentencepiece") as train, \
                    mock.patch(f"{module}.SentencePieceTokenizer") as tokenizer, \
                    contextlib.redirect_stdout(io.StringIO()):
                tokenizer.return_value.encode.return_value = [0]
                cli.main(["tokenizer", "--corpus", argument, "--output",
                          str(self.directory / "tokenizer.model")])
            self.assertEqual(len(train.call_args.args[0]), documents)


class VocabularyTest(TemporaryDirectoryTest):
    """A run's text, its configuration and its export have one vocabulary."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.directory / "tokenizer.model"
        train_sentencepiece([random_text(1, 400)], self.path, 300, 1 << 20)
        self.config = tiny_config(
            (TRANSFORMER,), vocab_size=300, tokenizer_file="tokenizer.model", bos_token_id=1,
            eos_token_id=2, pad_token_id=0,
        )

    def _trainer(self, tokenizer: Tokenizer) -> Trainer:
        path = write_corpus(self.directory / "text.jsonl", [random_text(2, 100)])
        corpus = tokenize(path, tokenizer, self.directory / "cache")
        options = TrainConfig(max_tokens=1000, segment=32, sequences=1, lanes=1, min_tail=0)
        return Trainer(
            self.config, options, [corpus], [1.0], None, tokenizer, self.directory / "run"
        )

    def test_a_forgotten_tokenizer_is_refused(self) -> None:
        (self.directory / "config.json").write_text(json.dumps(self.config.to_json()))
        path = write_corpus(self.directory / "text.jsonl", [random_text(2, 100)])
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = cli.main([
                "train", "--config", str(self.directory / "config.json"), "--max_tokens", "100",
                "--run_dir", str(self.directory / "run"), "--corpus", str(path), "--segment", "32",
                "--cache_dir", str(self.directory / "cache"), "--min_tail", "0",
            ])
        self.assertEqual(status, 1)
        self.assertIn("vocabulary is tokenizer.model, the tokenizer's is bytes", errors.getvalue())
        self.assertFalse((self.directory / "cache").exists())

    def test_kind_and_ids_are_compared(self) -> None:
        pieces = SentencePieceTokenizer(self.path)
        check_tokenizer(self.config, pieces)
        check_tokenizer(dataclasses.replace(self.config, pad_token_id=None), pieces)
        check_tokenizer(tiny_config(), ByteTokenizer())
        for config, tokenizer, pattern in (
            (self.config, ByteTokenizer(), "is tokenizer.model, the tokenizer's is bytes"),
            (tiny_config(vocab_size=300), pieces, "is bytes, the tokenizer's is a SentencePiece"),
            (dataclasses.replace(self.config, vocab_size=299), pieces, "300 pieces, the model 299"),
            (dataclasses.replace(self.config, bos_token_id=3), pieces, "bos_token_id is 3 .* 1 in"),
            (dataclasses.replace(self.config, eos_token_id=None), pieces, "eos_token_id is None"),
            (tiny_config(pad_token_id=0), ByteTokenizer(), "pad_token_id is 0 .* 258 in"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                check_tokenizer(config, tokenizer)

    def test_a_run_keeps_its_vocabulary(self) -> None:
        other = self.directory / "other.model"
        train_sentencepiece([random_text(7, 400)], other, 300, 1 << 20)
        self._trainer(SentencePieceTokenizer(self.path)).run(max_steps=1)
        self._trainer(SentencePieceTokenizer(self.path))
        with self.assertRaisesRegex(ValueError, "was trained with the vocabulary"):
            self._trainer(SentencePieceTokenizer(other))
        run, output = self.directory / "run", self.directory / "out"
        with self.assertRaisesRegex(ValueError, "was trained with the vocabulary"):
            export_run(run, output, other, torch.float32)
        self.assertFalse(output.exists())
        export_run(run, output, self.path, torch.float32)
        self.assertEqual((output / "tokenizer.model").read_bytes(), self.path.read_bytes())
        # A run that does not say is taken as it was before it could.
        state = load_training_checkpoint(run / "checkpoint.pt")
        del state["tokenizer"], state["sampler"]["corpora"]
        torch.save(state, run / "checkpoint.pt")
        self._trainer(SentencePieceTokenizer(other))
        export_run(run, output, other, torch.float32)


class CheckpointTest(TemporaryDirectoryTest):
    def test_safetensors_round_trip(self) -> None:
        path = self.directory / "x.safetensors"
        tensors = {
            "a": torch.randn(3, 5),
            "b": torch.randn(2, 0, 4).half(),
            "c": torch.randn(7).bfloat16(),
        }
        write_safetensors(path, tensors, {"format": "pt"})
        loaded = read_safetensors(path)
        self.assertEqual(list(loaded), list(tensors))
        for name, tensor in tensors.items():
            self.assertEqual(loaded[name].dtype, tensor.dtype)
            self.assertTrue(torch.equal(loaded[name], tensor))

    def test_damaged_safetensors_are_named(self) -> None:
        path = self.directory / "x.safetensors"
        write_safetensors(path, {"a": torch.randn(3, 5), "b": torch.randn(4)})
        whole = path.read_bytes()
        for content, pattern in (
            (b"", "not a safetensors file"),
            (whole[:60], "not a safetensors file"),
            (whole[:8] + whole[8:].replace(b"{", b"[", 1), "not a safetensors file"),
            (whole[:-1], "b is bytes 60 to 76 of 75, which are not a F32"),
            (whole.replace(b"[3,5]", b"[3,4]"), r"a is bytes .* not a F32 of shape \[3, 4\]"),
            (whole.replace(b'"F32"', b'"I32"', 1), "a has type I32, not one of F32, F16, BF16"),
            (whole.replace(b'"shape"', b'"shapE"', 1), "a lacks a type, a shape or its offsets"),
        ):
            path.write_bytes(content)
            with self.assertRaisesRegex(ValueError, f"^{path}: {pattern}"):
                read_safetensors(path)

    def test_export_and_import(self) -> None:
        config = tiny_config(
            (TRANSFORMER, bst()), AttentionConfig(position="t5"), ffn_activation="swiglu",
            tie_embeddings=False,
        )
        model = random_model(config, 1, [SsmOptions(), SsmOptions(with_b=True)])
        export_model(model, self.directory / "f32", dtype=torch.float32)
        export_model(model, self.directory / "bf16")
        exact = load_model(self.directory / "f32")
        rounded = load_model(self.directory / "bf16")
        for name, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(exact.state_dict()[name], tensor), name)
            kept = tensor if is_float32_only(name) else tensor.bfloat16().float()
            self.assertTrue(torch.equal(rounded.state_dict()[name], kept), name)
        stored = read_safetensors(self.directory / "bf16" / "model.safetensors")
        self.assertEqual(stored["layers.1.ssm.log_dt"].dtype, torch.float32)
        self.assertEqual(stored["layers.0.attn.scale"].dtype, torch.float32)
        self.assertEqual(stored["layers.0.attn.q_proj.weight"].dtype, torch.bfloat16)
        self.assertEqual(stored["layers.1.attn.o_proj.weight"].shape, (24, 32))

    def test_explicit_filters_are_exported_as_their_taps(self) -> None:
        model = random_model(tiny_config((TRANSFORMER, bst("explicit", "multi_filter"))), 3)
        export_model(model, self.directory, dtype=torch.float32)
        stored = read_safetensors(self.directory / "model.safetensors")
        taps = stored["layers.1.ssm.filter"]
        self.assertEqual(taps.shape, (5, 24, 21))
        self.assertTrue(torch.equal(taps, model.layers[1].ssm.taps()))
        self.assertFalse([name for name in stored if "positional" in name])
        tokens = torch.randint(0, 256, (1, 50))
        with torch.no_grad():
            difference = (load_model(self.directory)(tokens)[0] - model(tokens)[0]).abs().max()
        self.assertLess(float(difference), 1e-4)

    def test_growing_modes_are_refused(self) -> None:
        model = random_model(tiny_config((bst("s5"),)), 4)
        with torch.no_grad():
            model.layers[0].ssm.lambda_real[1] = 0.1
        export_model(model, self.directory / "growing")
        with self.assertRaisesRegex(ConfigError, "layers.0.ssm.lambda_real: a growing mode"):
            load_model(self.directory / "growing")
        model.project()
        export_model(model, self.directory / "decaying")
        load_model(self.directory / "decaying")

    def test_tensors_that_are_not_finite_are_refused(self) -> None:
        # The last is finite in float32 and rounds to infinity in BF16.
        for value in (math.nan, math.inf, 3.4e38):
            model = random_model(tiny_config(), 4)
            with torch.no_grad():
                model.layers[0].attn.q_proj.weight[1, 2] = value
            with self.assertRaisesRegex(ValueError, "layers.0.attn.q_proj.weight: .*not finite"):
                export_model(model, self.directory / "out")
            self.assertFalse((self.directory / "out").exists())

    def test_a_directory_with_an_index_is_refused(self) -> None:
        index = self.directory / "model.safetensors.index.json"
        index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
        with self.assertRaisesRegex(ValueError, "index.json: holds a checkpoint in several files"):
            export_model(random_model(tiny_config(), 1), self.directory)
        self.assertEqual(list(self.directory.iterdir()), [index])

    def test_files_are_on_disk_before_they_replace_others(self) -> None:
        calls: List[Tuple[str, str]] = []
        replace, sync = os.replace, os.fsync

        def note_replace(scratch: Path, target: Path) -> None:
            calls.append(("replace", Path(target).name))
            replace(scratch, target)

        def note_sync(descriptor: int) -> None:
            calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
            sync(descriptor)

        with mock.patch("os.replace", note_replace), mock.patch("os.fsync", note_sync):
            export_model(random_model(tiny_config(), 1), self.directory)
        self.assertEqual(calls, [
            call
            for name in ("config.json", "model.safetensors")
            for call in (
                ("sync", f"{name}.partial"), ("replace", name), ("sync", self.directory.name)
            )
        ])

    def test_import_names_a_bad_tensor(self) -> None:
        model = random_model(tiny_config(), 2)
        export_model(model, self.directory)
        path = self.directory / "model.safetensors"
        tensors = read_safetensors(path)
        for change, pattern in (
            ({"extra.weight": torch.zeros(1)}, "extra.weight: superfluous"),
            ({"final_norm.weight": torch.zeros(3)}, "final_norm.weight: shape"),
            ({"layers.1.ssm.d": tensors["layers.1.ssm.d"].bfloat16()}, "ssm.d: must be F32"),
        ):
            write_safetensors(path, {**tensors, **change})
            with self.assertRaisesRegex(ConfigError, pattern):
                load_model(self.directory)
        del tensors["embed.weight"]
        write_safetensors(path, tensors)
        with self.assertRaisesRegex(ConfigError, "embed.weight: missing"):
            load_model(self.directory)


class OptimizerTest(unittest.TestCase):
    def test_orthogonalize(self) -> None:
        torch.manual_seed(1)
        for shape in ((2, 12, 30), (30, 12)):
            singular = torch.linalg.svdvals(orthogonalize(torch.randn(*shape)))
            self.assertGreater(float(singular.min()), 0.5)
            self.assertLess(float(singular.max()), 1.3)

    def test_groups(self) -> None:
        """Every kind of parameter has its rate; only matrices go to Muon."""
        layers = (TRANSFORMER, bst("s5", "multi_head"), bst("explicit", "multi_filter"), BRECT,
                  gss())
        model = LanguageModel(tiny_config(layers, AttentionConfig(position="t5")))
        config = OptimizerConfig()
        muon, adam = make_optimizers(model, config)
        rates = {
            id(p): group["lr"]
            for optimizer in (muon, adam) for group in optimizer.param_groups
            for p in group["params"]
        }
        named = dict(model.named_parameters())
        self.assertEqual(len(rates), len(named))
        self.assertEqual(len(muon.param_groups[0]["params"]),
                         sum(name.endswith("_proj.weight") for name in named))
        for name, rate in {
            "layers.1.cross.k_proj.weight": config.matrix_lr,
            "layers.3.state.o_proj.weight": config.matrix_lr,
            "layers.4.gss.gate_proj.weight": config.matrix_lr,
            "layers.1.ssm.b": config.ssm_lr,
            "layers.2.ssm.d": config.ssm_lr,
            "layers.2.ssm.positional.inner.weight": config.filter_lr,
            "layers.2.cross.initial_context": config.other_lr,
            "layers.3.state.gate_bias": config.other_lr,
            "layers.3.state.initial": config.other_lr,
            "layers.3.state.cross_scale": config.scale_lr,
            "embed.weight": config.embed_lr,
        }.items():
            self.assertEqual(rates[id(named[name])], rate, name)

    def test_schedule(self) -> None:
        config = OptimizerConfig(warmup_steps=10, final_lr=0.1)
        self.assertAlmostEqual(schedule(0, 0.0, config), 0.1)
        self.assertAlmostEqual(schedule(9, 0.0, config), 1.0)
        self.assertAlmostEqual(schedule(99, 0.5, config), 0.55)
        self.assertAlmostEqual(schedule(99, 1.0, config), 0.1)
        self.assertAlmostEqual(schedule(99, 1.5, config), 0.1)


class TrainConfigTest(unittest.TestCase):
    def test_what_cannot_be_trained_is_named(self) -> None:
        """A budget of -1 was never used up, a segment of 0 never had a loss, and so on."""
        for key in ("max_tokens", "segment", "sequences", "lanes", "log_every"):
            for value in (0, -1):
                with self.assertRaisesRegex(ValueError, f"^{key}: {value} is not positive"):
                    TrainConfig(**{"max_tokens": 1, key: value})
        for key in ("max_segments", "min_tail", "seed", "valid_every", "valid_tokens"):
            TrainConfig(**{"max_tokens": 1, key: 0})
            with self.assertRaisesRegex(ValueError, f"^{key}: -1 is not 0 or more"):
                TrainConfig(**{"max_tokens": 1, key: -1})
        for value in (-1.0, math.nan):
            with self.assertRaisesRegex(ValueError, f"^time_budget_s: {value} is not 0 or more"):
                TrainConfig(max_tokens=1, time_budget_s=value)

    def test_an_unknown_optimizer_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "optimizer: 'moun' is not one of muon, adamw"):
            OptimizerConfig(optimizer="moun")


class TrainerTest(TemporaryDirectoryTest):
    def _trainer(
        self, name: str, layers: Tuple[LayerConfig, ...] = (TRANSFORMER, bst()),
        device: str = "cpu", **changes: object
    ) -> Trainer:
        path = self.directory / "text.jsonl"
        if not path.exists():
            write_corpus(path, [random_text(i, 60 + 20 * i) for i in range(6)])
        tokenizer = ByteTokenizer()
        corpus = tokenize(path, tokenizer, self.directory / "cache")
        config = TrainConfig(
            max_tokens=40 * 64, segment=32, sequences=2, lanes=3, max_segments=4, min_tail=0,
            log_every=5, optimizer=OptimizerConfig(warmup_steps=5),
        )
        config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        return Trainer(
            tiny_config(layers), config, [corpus], [1.0], corpus, tokenizer, self.directory / name,
            device,
        )

    def test_resume_is_exact(self) -> None:
        straight = self._trainer("straight")
        straight.run(max_steps=12)
        self._trainer("stopped").run(max_steps=5)
        resumed = self._trainer("stopped")
        self.assertEqual(resumed.step, 5)
        resumed.run(max_steps=7)
        self.assertEqual(resumed.tokens, straight.tokens)
        for name, tensor in straight.model.state_dict().items():
            self.assertTrue(torch.equal(tensor, resumed.model.state_dict()[name]), name)
        self.assertTrue((self.directory / "stopped" / "curve.csv").exists())

    def test_resume_puts_the_states_where_the_model_is(self) -> None:
        self._trainer("moved").run(max_steps=2)
        resumed = self._trainer("moved", device="meta")   # stands for an accelerator
        states = [state for state in resumed._states if state is not None]
        self.assertEqual(len(states), 3)
        for tensor in (tensor for state in states for layer in state for tensor in layer):
            self.assertEqual(tensor.device.type, "meta")

    def test_resume_with_another_initialisation_is_refused(self) -> None:
        """Where it changes what there is to train; it cannot change what is trained already."""
        for name, initial, pattern in (
            ("legs", "", "another --ssm_init: layers.1.ssm.b is in it"),
            ("lin", "legs", "another --ssm_init: layers.1.ssm.b is not in it"),
        ):
            self._trainer(name, ssm_init=name).run(max_steps=1)
            with self.assertRaisesRegex(ValueError, pattern):
                self._trainer(name, ssm_init=initial)

    def test_resume_takes_the_settings_of_its_arguments(self) -> None:
        def settings(trainer: Trainer) -> List[dict]:
            return [
                {key: value for key, value in group.items() if key != "params"}
                for optimizer in trainer._optimizers for group in optimizer.param_groups
            ]

        changed = OptimizerConfig(
            momentum=0.5, weight_decay=0.1, beta1=0.8, beta2=0.9, matrix_lr=0.01, ssm_lr=1e-3
        )
        fresh = settings(self._trainer("fresh", optimizer=changed))
        trainer = self._trainer("stopped")
        for group in trainer._optimizers[1].param_groups:
            group["eps"] = 1e-3
        trainer.run(max_steps=2)
        resumed = self._trainer("stopped", optimizer=changed)
        self.assertEqual(settings(resumed), fresh)
        self.assertEqual(len(resumed._optimizers[0].state), len(trainer._optimizers[0].state))

    def test_a_checkpoint_is_on_disk_before_it_replaces_the_last(self) -> None:
        trainer = self._trainer("durable")
        target = self.directory / "durable" / "checkpoint.pt"
        synced: List[bytes] = []

        def note_sync(descriptor: int) -> None:
            if not Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
                self.assertFalse(target.exists())
                synced.append(target.with_suffix(".partial").read_bytes())
            else:
                self.assertTrue(target.exists())
                synced.append(b"directory")

        with mock.patch("os.fsync", note_sync):
            trainer.run(max_steps=1)
        self.assertEqual(synced, [target.read_bytes(), b"directory"])

    def test_numbers_that_are_not_finite_end_the_run(self) -> None:
        self._trainer("diverged").run(max_steps=2)
        checkpoint = self.directory / "diverged" / "checkpoint.pt"
        kept = checkpoint.read_bytes()
        trainer = self._trainer("diverged", checkpoint_every_s=0.0)
        norms = trainer.model.final_norm.weight
        with torch.no_grad():
            norms[0] = math.nan
        others = norms[1:].clone()
        with self.assertRaisesRegex(FloatingPointError, "step 3: the loss is nan"):
            trainer.run(max_steps=3)
        self.assertTrue(torch.equal(norms[1:], others))
        self.assertEqual(checkpoint.read_bytes(), kept)
        # An update that makes the weights infinite is seen before the next step's loss is.
        options = OptimizerConfig(other_lr=math.inf)
        with self.assertRaisesRegex(FloatingPointError, "step 3: .* is not finite"):
            self._trainer("diverged", optimizer=options).run(max_steps=1)
        self.assertEqual(checkpoint.read_bytes(), kept)

    def test_loss_falls(self) -> None:
        for optimizer, rate in (("muon", 0.02), ("adamw", 3e-3)):
            options = OptimizerConfig(optimizer=optimizer, matrix_lr=rate, warmup_steps=5)
            trainer = self._trainer(optimizer, optimizer=options)
            before = trainer._train_step()[0]
            trainer.run()
            self.assertGreaterEqual(trainer.tokens, 40 * 64)
            last = trainer._curve[-1]
            self.assertLess(last["loss"], before - 1.0)
            self.assertLess(last["lr"], 0.2)

    def test_time_budget_ends_the_run(self) -> None:
        trainer = self._trainer("budget", max_tokens=10**9, time_budget_s=0.3)
        trainer.run()
        self.assertGreaterEqual(trainer.elapsed_s, 0.3)
        self.assertGreater(trainer.step, 0)

    def test_budget_file_replaces_the_budget(self) -> None:
        trainer = self._trainer("shortened")
        file = self.directory / "shortened" / "max_tokens"
        for text in ("2e2", "0", ""):
            file.write_text(text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                trainer._read_budget()
            self.assertIn(f"{file}: '{text}' is not a number of tokens; the budget stays 2560",
                          output.getvalue())
        file.write_text("200\n", encoding="utf-8")
        trainer.run()
        self.assertGreaterEqual(trainer.tokens, 200)
        self.assertLess(trainer.tokens, 200 + 64)

    def test_every_layer_trains_and_resumes(self) -> None:
        layers = (bst("s4"), bst("s5", "multi_head"), bst("explicit", "multi_filter"), BRECT, gss())
        trainer = self._trainer("all", layers)
        before = trainer._train_step()[0]
        trainer.run(max_steps=9)
        resumed = self._trainer("all", layers)
        self.assertEqual(resumed.step, 10)
        resumed.run()
        self.assertLess(resumed._curve[-1]["loss"], before - 1.0)
        model = model_from_run(self.directory / "all")
        self.assertTrue(torch.equal(model.embed.weight, resumed.model.embed.weight))

    def test_initialisation_is_chosen_by_name(self) -> None:
        layers = (bst("s4d"), bst("dss"), bst("s4"))
        trainer = self._trainer("legs", layers, ssm_init="legs")
        self.assertIsNotNone(trainer.model.layers[0].ssm.b)
        trainer.run(max_steps=1)
        self.assertIsNotNone(model_from_run(self.directory / "legs").layers[0].ssm.b)
        gss_like = self._trainer("gss", layers, ssm_init="gss").model
        self.assertEqual(float(gss_like.layers[1].ssm.log_dt.abs().max()), 0.0)
        with self.assertRaisesRegex(ValueError, "ssm_init"):
            self._trainer("unknown", (bst("s4"),), ssm_init="legs")

    def test_twins_see_the_same_text(self) -> None:
        one, other = self._trainer("one"), self._trainer("other")
        other._train_step()
        one._train_step()
        a, b = one._sampler.next_batch(), other._sampler.next_batch()
        self.assertTrue(np.array_equal(a.inputs, b.inputs))

    def test_bf16_autocast_trains(self) -> None:
        layers = (bst("s4", "multi_head"), bst("s4d", "multi_filter"), BRECT, gss())
        trainer = self._trainer("bf16", layers, bf16=True)
        loss = trainer._train_step()[0]
        for _ in range(8):
            last = trainer._train_step()[0]
        self.assertTrue(math.isfinite(last))
        self.assertLess(last, loss)


class EvaluatorTest(TemporaryDirectoryTest):
    def test_uniform_model_has_log2_of_the_vocabulary_bits(self) -> None:
        model = LanguageModel(tiny_config((TRANSFORMER, bst())))
        with torch.no_grad():
            model.embed.weight.zero_()
        path = write_corpus(self.directory / "v.jsonl", [random_text(1, 30), random_text(2, 90)])
        corpus = tokenize(path, ByteTokenizer(), self.directory)
        result = evaluate(model, corpus, ByteTokenizer(), 16, 2, edges=(0, 20, 1000000))
        size = int(corpus.bytes.sum())
        tokens = size + 2   # every byte, and two eos
        self.assertEqual(result.total.tokens, tokens)
        self.assertEqual(result.total.bytes, size)
        self.assertAlmostEqual(result.total.perplexity, 259.0, delta=0.01)
        self.assertAlmostEqual(
            result.total.bits_per_byte, math.log2(259) * tokens / size, delta=1e-4
        )
        self.assertEqual(result.by_position[0][1].tokens, 40)
        self.assertEqual(result.by_position[2][1].tokens, 0)
        self.assertIn("| all |", result.table())

    def test_what_cannot_be_read_is_named(self) -> None:
        """A batch of 0 read nothing and said so of all documents."""
        model = LanguageModel(tiny_config((TRANSFORMER,)))
        for segment, batch, pattern in (
            (0, 1, "segment: 0"), (8, 0, "batch: 0"), (8, -1, "batch: -1"),
        ):
            with self.assertRaisesRegex(ValueError, f"^{pattern} is not positive"):
                document_losses(model, [np.arange(9)], segment, batch)

    def _eval(self, model: LanguageModel, *paths: Path) -> dict:
        """What the command writes as JSON, read without Python's leniency."""
        export_model(model, self.directory / "checkpoint", dtype=torch.float32)
        options = [f"--corpus={path}" for path in paths]
        with contextlib.redirect_stdout(io.StringIO()):
            status = cli.main([
                "eval", "--checkpoint", str(self.directory / "checkpoint"), *options, "--cache_dir",
                str(self.directory / "cache"), "--json", str(self.directory / "e.json"),
            ])
        self.assertEqual(status, 0)
        def refuse(constant: str) -> None:
            self.fail(f"{constant} is not JSON")
        return json.loads((self.directory / "e.json").read_text(), parse_constant=refuse)

    def test_every_corpus_is_in_the_json(self) -> None:
        """Under its name, or its path where names are alike; positions without tokens have null."""
        paths = [self.directory / place / "v.jsonl" for place in ("a", "b")]
        for seed, path in enumerate(paths):
            path.parent.mkdir()
            write_corpus(path, [random_text(seed, 20 + 30 * seed)])
        other = write_corpus(self.directory / "w.jsonl", ["a"])
        results = self._eval(random_model(tiny_config((TRANSFORMER,)), 1), *paths, other)
        self.assertEqual(list(results), [str(paths[0]), str(paths[1]), "w.jsonl"])
        self.assertLess(results[str(paths[0])]["bytes"], results[str(paths[1])]["bytes"])
        self.assertIsNone(results["w.jsonl"]["by_position"]["512-4096"]["perplexity"])

    def test_special_tokens_are_the_configurations(self) -> None:
        """As in serving: here bos elsewhere, then none at all in a vocabulary of bytes alone."""
        path = write_corpus(self.directory / "v.jsonl", ["abc"])
        for changes, expected in (
            (dict(vocab_size=300, bos_token_id=290, eos_token_id=None, pad_token_id=None),
             [290, 97, 98, 99]),
            (dict(vocab_size=256, bos_token_id=None, eos_token_id=None, pad_token_id=None),
             [97, 98, 99]),
        ):
            model = random_model(tiny_config((TRANSFORMER,), **changes), 1)
            result = self._eval(model, path)["v.jsonl"]
            nats = document_losses(model, [np.array(expected)], 4096, 1)[0]
            self.assertEqual(result["tokens"], len(nats))
            self.assertAlmostEqual(result["nats_per_token"], float(nats.mean()), delta=1e-4)

    def test_a_vocabulary_beyond_the_models_is_refused(self) -> None:
        tokenizer = self.directory / "t.model"
        train_sentencepiece([random_text(1, 400)], tokenizer, 300, 1 << 20)
        config = tiny_config((TRANSFORMER,), vocab_size=299, tokenizer_file="t.model")
        export_model(random_model(config, 1), self.directory / "checkpoint", tokenizer)
        with self.assertRaisesRegex(ValueError, "t.model: has 300 pieces, the model 299"):
            load_model_and_tokenizer(self.directory / "checkpoint")

    def test_batching_and_segments_do_not_matter(self) -> None:
        model = random_model(tiny_config(), 3)
        rng = np.random.default_rng(1)
        documents = [rng.integers(0, 256, n) for n in (50, 7, 33, 1, 90)]
        one = document_losses(model, documents, 256, 1)
        other = document_losses(model, documents, 16, 3)
        for a, b, document in zip(one, other, documents):
            self.assertEqual(len(a), len(document) - 1)
            self.assertTrue(np.allclose(a, b, atol=2e-4))


class GenerateTest(unittest.TestCase):
    def test_greedy_equals_recomputation(self) -> None:
        model = random_model(tiny_config((TRANSFORMER, bst()), eos_token_id=None), 5)
        prompt = [256] + list(b"a prompt of some length")
        tokens = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
        self.assertEqual(sample(model, prompt, 20, 0.0, 1.0, 1), tokens[len(prompt) :])

    def test_settings_out_of_range_are_named(self) -> None:
        model = random_model(tiny_config((TRANSFORMER,)), 5)
        for prompt, count, temperature, top_p, pattern in (
            ([], 1, 1.0, 1.0, "prompt: empty"),
            ([256], -1, 1.0, 1.0, "max_new_tokens: -1"),
            ([256], 1, -0.5, 1.0, "temperature: -0.5"),
            ([256], 1, math.nan, 1.0, "temperature: nan"),
            ([256], 1, 1.0, 0.0, "top_p: 0.0"),
            ([256], 1, 1.0, 1.1, "top_p: 1.1"),
            ([256], 1, 1.0, math.nan, "top_p: nan"),
        ):
            with self.assertRaisesRegex(ValueError, f"^{pattern}"):
                sample(model, prompt, count, temperature, top_p, 1)


class PlotTest(TemporaryDirectoryTest):
    def test_arguments_that_are_no_curves_are_named(self) -> None:
        curve, other = self.directory / "curve.csv", self.directory / "other.csv"
        curve.write_text("step,tokens,loss\n1,64,5.5\n2,128,5.0\n")
        other.write_text("step,value\n1,2\n")
        output = self.directory / "curves.png"
        for arguments, pattern in (
            ([str(curve)], f"{curve}: NAME=CSV is needed"),
            ([f"a={curve}", f"a={other}"], f"a={other}: is drawn already"),
            ([f"a={other}"], f"{other}: not a curve"),
        ):
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                self.assertEqual(cli.main(["plot", *arguments, "--output", str(output)]), 1)
            self.assertIn(f"error: {pattern}", errors.getvalue())
        self.assertEqual(cli.main(["plot", f"a={curve}", "--output", str(output)]), 0)
        self.assertTrue(output.exists())


if __name__ == "__main__":
    unittest.main()
