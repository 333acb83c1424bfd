"""Text <-> token ids: raw bytes, or a SentencePiece BPE vocabulary.

Both are lossless, `decode(encode(text)) == text`, but for one character: SentencePiece writes a
blank as U+2581, and so reads that character as a blank. The vocabularies trained here use identity
normalisation, no dummy prefix, no whitespace collapsing and byte fallback; line breaks are pieces
of their own, so encoding never looks across one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Protocol, Union

PAD_ID = 0
BOS_ID = 1
EOS_ID = 2
UNK_ID = 3

BYTE_DIGEST = "byte"

# A line together with the run of line breaks behind it. Line breaks are user-defined pieces, so
# cutting a text at these places does not change its encoding; it keeps the encoder's heap small.
_LINE = re.compile(r"[^\n]*\n+|[^\n]+\Z")


def tokenizer_digest(path: Optional[Union[str, Path]]) -> str:
    """The SHA-256 of a SentencePiece model file; "byte" for None and "byte", which are bytes."""
    if path is None or str(path) == "byte":
        return BYTE_DIGEST
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Tokenizer(Protocol):
    """What the trainer, the evaluator and the sampler need of a vocabulary."""

    vocab_size: int
    bos_id: Optional[int]
    eos_id: Optional[int]
    pad_id: Optional[int]
    digest: str   # tells vocabularies apart: see tokenizer_digest

    def encode(self, text: str) -> List[int]:
        """Token ids of `text`, without bos or eos."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens have none. Bytes that are not UTF-8 become U+FFFD."""


class ByteTokenizer:
    """Token id = byte value; bos, eos and pad follow at 256, 257 and 258. A checkpoint may have
    them elsewhere, see load_model_and_tokenizer."""

    def __init__(self) -> None:
        self.vocab_size = 259
        self.bos_id: Optional[int] = 256
        self.eos_id: Optional[int] = 257
        self.pad_id: Optional[int] = 258
        self.digest = BYTE_DIGEST

    def encode(self, text: str) -> List[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model file (`tokenizer.model`)."""

    def __init__(self, path: Union[str, Path]) -> None:
        import sentencepiece

        self.digest = tokenizer_digest(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not a SentencePiece model") from error
        self.vocab_size = self._processor.vocab_size()

        def known(token_id: int) -> Optional[int]:
            return token_id if token_id >= 0 else None

        self.bos_id = known(self._processor.bos_id())
        self.eos_id = known(self._processor.eos_id())
        self.pad_id = known(self._processor.pad_id())

    def encode(self, text: str) -> List[int]:
        ids: List[int] = []
        for line in self._processor.encode(_LINE.findall(text)):
            ids.extend(line)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


def load_tokenizer(path: Optional[Union[str, Path]]) -> Tokenizer:
    """The byte tokenizer when `path` is None or "byte", else the SentencePiece model at `path`."""
    if path is None or str(path) == "byte":
        return ByteTokenizer()
    return SentencePieceTokenizer(path)


def _sentences(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Lines for the SentencePiece trainer, at most `max_bytes` of them together."""
    total = 0
    for text in texts:
        for line in text.split("\n"):
            if line:
                total += len(line.encode("utf-8"))
                yield line
        if total >= max_bytes:
            return


def train_sentencepiece(
    texts: Iterable[str], output: Union[str, Path], vocab_size: int, max_bytes: int
) -> None:
    """Trains a BPE vocabulary of `vocab_size` pieces on `texts` and writes it to `output`.

    Only the first `max_bytes` bytes of text are used; shuffle `texts` beforehand. Memory grows
    with them (about 20 bytes per byte of text). Raises ValueError where the texts do not make a
    vocabulary of that size.
    """
    import io

    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, max_bytes),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=0.9999,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\n\n"],
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            max_sentence_length=1 << 20,
            num_threads=2,
            minloglevel=1,
        )
    except RuntimeError as error:
        # "Internal: FILE(LINE) [CONDITION] MESSAGE", of which the last part alone tells anything.
        reason = str(error).rpartition("] ")[2] or "there is no text"
        raise ValueError(f"vocab_size {vocab_size}: {reason}") from error
    Path(output).write_bytes(model.getvalue())
