"""From JSON-lines files to the segments a training step or an evaluation reads.

A corpus file holds one document per line, `{"text": ...}` (other keys are ignored), as it is or
compressed with xz or gzip. A document becomes bos, its tokens and eos. Documents are tokenised
once; the ids go to a cache beside the run.

Training reads *lanes*. A lane is a stream of documents that are read one after the other, segment
by segment, and it owns the model state that is handed from one segment to the next. Each step
takes `sequences` lanes in rotation, so with more lanes than sequences consecutive steps see
different documents. Long documents may be cut into pieces of random length, each then a document
of its own that starts at position 0; every piece is visited once before any is visited again.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import lzma
import math
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, TextIO, Tuple, Union

import numpy as np

from .durable import replace_durably
from .tokenizer import Tokenizer

PathLike = Union[str, Path]

# What reading a file raises that is cut off, damaged or of another kind.
_DAMAGED = (EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def open_text(path: PathLike) -> TextIO:
    """Opens a plain, .xz or .gz file for reading as UTF-8 text."""
    path = Path(path)
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def read_texts(path: PathLike) -> Iterator[str]:
    """The documents of a JSON-lines file, in file order. Raises ValueError naming a bad line."""
    number = 0
    with open_text(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of(line, f"{path}:{number}")
        except _DAMAGED as error:
            raise ValueError(f"{path}: cannot be read behind line {number}: {error}") from error


def _text_of(line: str, place: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: not a JSON object with a \"text\"") from error
    if not isinstance(text, str):
        raise ValueError(f"{place}: \"text\" is not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: character {error.start + 1} of \"text\" is half of a surrogate pair, which "
            "UTF-8 cannot hold"
        ) from error
    return text


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus file and the share of the training tokens that it provides."""

    path: str
    weight: float

    @staticmethod
    def parse(argument: str, default: float = 1.0) -> "Source":
        """Parses `PATH:WEIGHT`, or `PATH`, which has the weight `default`.

        What stands behind the last colon is a weight if it is a number. Raises ValueError unless
        it is positive and finite: who wants nothing of a corpus leaves it out.
        """
        path, separator, text = argument.rpartition(":")
        if not separator:
            return Source(argument, default)
        try:
            weight = float(text)
        except ValueError:
            return Source(argument, default)
        if not 0.0 < weight < math.inf:
            raise ValueError(
                f"{argument}: {text!r} behind the colon must be a positive, finite number"
            )
        if not path:
            raise ValueError(f"{argument}: no path in front of the colon")
        return Source(path, weight)


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """All documents of one file: `ids[bounds[i]:bounds[i + 1]]` is document i with bos and eos."""

    ids: np.ndarray      # [tokens]         uint16 or int32
    bounds: np.ndarray   # [documents + 1]  int64
    bytes: np.ndarray    # [documents]      int64, UTF-8 bytes of each text

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def document(self, index: int) -> np.ndarray:
        return self.ids[self.bounds[index] : self.bounds[index + 1]]

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the documents' tokens, whatever the type they are held in."""
        digest = hashlib.sha256(self.bounds.astype("<i8").tobytes())
        for begin in range(0, len(self.ids), 1 << 20):
            digest.update(self.ids[begin : begin + (1 << 20)].astype("<i4").tobytes())
        return digest.hexdigest()


def _cache_key(path: PathLike, tokenizer: Tokenizer) -> str:
    kind = (tokenizer.vocab_size, tokenizer.digest, tokenizer.bos_id, tokenizer.eos_id)
    digest = hashlib.sha256(f"{kind} ".encode())
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def tokenize(path: PathLike, tokenizer: Tokenizer, cache_dir: PathLike) -> TokenizedCorpus:
    """Tokenises the file at `path`, or loads the result of an earlier call from `cache_dir`."""
    cache = Path(cache_dir) / f"{Path(path).name}.{_cache_key(path, tokenizer)}.npz"
    if cache.exists():
        with np.load(cache) as stored:
            return TokenizedCorpus(stored["ids"], stored["bounds"], stored["bytes"])
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    suffix = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    documents: List[np.ndarray] = []
    sizes: List[int] = []
    for text in read_texts(path):
        documents.append(np.array(prefix + tokenizer.encode(text) + suffix, dtype=dtype))
        sizes.append(len(text.encode("utf-8")))
    if not documents:
        raise ValueError(f"{path}: no documents")
    bounds = np.cumsum([0] + [len(d) for d in documents]).astype(np.int64)
    corpus = TokenizedCorpus(np.concatenate(documents), bounds, np.array(sizes, dtype=np.int64))
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Several trainers may fill the same cache at once: write aside, then rename.
    scratch = cache.with_suffix(f".{np.random.default_rng().integers(1 << 62)}.npz")
    np.savez(scratch, ids=corpus.ids, bounds=corpus.bounds, bytes=corpus.bytes)
    replace_durably(scratch, cache)
    return corpus


def count_shared(corpora: Sequence[TokenizedCorpus], held_out: TokenizedCorpus) -> int:
    """How many documents of `held_out` are, token for token, documents of `corpora`, too."""
    sizes = set(np.diff(held_out.bounds).tolist())   # of others nothing needs to be looked at

    def digests(corpus: TokenizedCorpus) -> Iterator[bytes]:
        for index, size in enumerate(np.diff(corpus.bounds).tolist()):
            if size not in sizes:
                continue
            yield hashlib.sha256(corpus.document(index).astype("<i4").tobytes()).digest()

    known = {digest for corpus in corpora for digest in digests(corpus)}
    return sum(digest in known for digest in digests(held_out))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a document that is trained on as a document of its own."""

    document: int
    begin: int   # first token of the piece within the document
    end: int     # one past the last token that is predicted


def cut_into_pieces(
    length: int, document: int, segment: int, max_segments: int, rng: np.random.Generator
) -> List[Piece]:
    """Cuts a document of `length` tokens into pieces of 1 to `max_segments` segments.

    Lengths are drawn log-uniformly, so that short and long pieces are both common. 0 for
    `max_segments` leaves the document whole.
    """
    pieces: List[Piece] = []
    begin = 0
    while length - begin > 1:
        size = length - begin
        if max_segments > 0:
            segments = int(np.exp(rng.uniform(0.0, np.log(max_segments + 1.0))))
            size = min(size, max(1, segments) * segment + 1)
        pieces.append(Piece(document, begin, begin + size))
        # The last target of a piece is the first input of the next one.
        begin += size - 1
    return pieces


@dataclasses.dataclass
class Batch:
    """The input of one training step: row r continues, or starts, a document on lane lanes[r]."""

    lanes: List[int]
    fresh: np.ndarray     # [rows]            bool: the row starts a document
    inputs: np.ndarray    # [rows, segment]   int64; padded with 0 behind the document's end
    targets: np.ndarray   # [rows, segment]   int64; -1 where nothing is predicted


class LaneSampler:
    """Deals documents to lanes, and segments of lanes to steps.

    Everything it does follows from the seed and the corpora, never from the model, so two runs
    with the same arguments see the same tokens in the same order. `state_dict` is exact, and names
    the corpora and the segment, without which its positions mean nothing.

    bos stands in front of a piece that starts inside a document, too: what the model then sees is
    what serving shows it, a document that begins at position 0 with bos.
    """

    def __init__(
        self,
        corpora: Sequence[TokenizedCorpus],
        weights: Sequence[float],
        tokenizer: Tokenizer,
        segment: int,
        sequences: int,
        lanes: int,
        max_segments: int,
        min_tail: int,
        seed: int,
    ) -> None:
        if lanes < sequences:
            raise ValueError(f"{lanes} lanes cannot feed {sequences} sequences per step")
        if len(corpora) != len(weights):
            raise ValueError(f"{len(corpora)} corpora need as many weights, not {len(weights)}")
        for index, (corpus, weight) in enumerate(zip(corpora, weights)):
            # At 0 a corpus would still be dealt wherever the others have just had their share.
            if not 0.0 < weight < math.inf:
                raise ValueError(
                    f"corpus {index + 1}: the weight {weight} is not positive and finite"
                )
            if not (np.diff(corpus.bounds) > 1).any():
                raise ValueError(f"corpus {index + 1}: no document has a token to predict")
        self._corpora = list(corpora)
        self._weights = np.array(weights, dtype=np.float64) / float(sum(weights))
        self._bos = tokenizer.bos_id
        self._segment = segment
        self._sequences = sequences
        self._max_segments = max_segments
        self._min_tail = min_tail
        self._rng = np.random.default_rng(seed)
        self._queues: List[List[Piece]] = [[] for _ in corpora]
        self._dealt = np.zeros(len(corpora), dtype=np.int64)
        self._lanes: List[Dict[str, Any]] = [
            {"source": -1, "document": 0, "position": 0, "end": 0} for _ in range(lanes)
        ]
        self._next_lane = 0

    def _refill(self, source: int) -> None:
        corpus = self._corpora[source]
        pieces: List[Piece] = []
        for document in range(len(corpus)):
            length = int(corpus.bounds[document + 1] - corpus.bounds[document])
            cut = cut_into_pieces(
                length, document, self._segment, self._max_segments, self._rng
            )
            pieces += [p for p in cut if p.begin == 0 or p.end - p.begin > self._min_tail]
        self._rng.shuffle(pieces)  # type: ignore[arg-type]
        self._queues[source] = pieces

    def _deal(self, lane: Dict[str, Any]) -> None:
        """Gives the lane its next piece, from the corpus that is furthest behind its share."""
        total = max(1, int(self._dealt.sum()))
        source = int(np.argmax(self._weights - self._dealt / total))
        if not self._queues[source]:
            self._refill(source)
        piece = self._queues[source].pop()
        self._dealt[source] += piece.end - piece.begin
        lane.update(
            source=source, document=piece.document, begin=piece.begin, position=piece.begin,
            end=piece.end,
        )

    def next_batch(self) -> Batch:
        """The next step's segments. Never fails: corpora are repeated when they are used up."""
        rows = self._sequences
        batch = Batch(
            lanes=[],
            fresh=np.zeros(rows, dtype=bool),
            inputs=np.zeros((rows, self._segment), dtype=np.int64),
            targets=np.full((rows, self._segment), -1, dtype=np.int64),
        )
        for row in range(rows):
            index = self._next_lane
            self._next_lane = (self._next_lane + 1) % len(self._lanes)
            lane = self._lanes[index]
            if lane["source"] < 0 or lane["end"] - lane["position"] < max(2, self._min_tail):
                self._deal(lane)
                batch.fresh[row] = True
            ids = self._corpora[lane["source"]].document(lane["document"])
            begin = lane["position"]
            end = min(begin + self._segment + 1, lane["end"])
            window = ids[begin:end].astype(np.int64)
            batch.lanes.append(index)
            batch.inputs[row, : len(window) - 1] = window[:-1]
            batch.targets[row, : len(window) - 1] = window[1:]
            if batch.fresh[row] and self._bos is not None:
                batch.inputs[row, 0] = self._bos
            lane["position"] = end - 1
        return batch

    def state_dict(self) -> Dict[str, Any]:
        return {
            "rng": self._rng.bit_generator.state,
            "queues": [[dataclasses.astuple(p) for p in queue] for queue in self._queues],
            "dealt": self._dealt.tolist(),
            "lanes": [dict(lane) for lane in self._lanes],
            "next_lane": self._next_lane,
            "segment": self._segment,
            "corpora": [
                {"documents": len(c), "tokens": len(c.ids), "sha256": c.digest}
                for c in self._corpora
            ],
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        for what, made, now in (
            ("lanes", len(state["lanes"]), len(self._lanes)),
            ("corpora", len(state["queues"]), len(self._queues)),
        ):
            if made != now:
                raise ValueError(f"the checkpoint was made with {made} {what}, not {now}")
        # Older states do not say what they were made with.
        if state.get("segment", self._segment) != self._segment:
            raise ValueError(
                f"the checkpoint was made with segments of {state['segment']} tokens, "
                f"not {self._segment}"
            )
        for index, (corpus, saved) in enumerate(zip(self._corpora, state.get("corpora", []))):
            for what, count in (("documents", len(corpus)), ("tokens", len(corpus.ids))):
                if saved[what] != count:
                    raise ValueError(
                        f"corpus {index + 1} had {saved[what]} {what} when the checkpoint was made, "
                        f"now {count}"
                    )
            if saved["sha256"] != corpus.digest:
                raise ValueError(f"corpus {index + 1} had other text when the checkpoint was made")
        self._rng.bit_generator.state = state["rng"]
        self._queues = [[Piece(*p) for p in queue] for queue in state["queues"]]
        self._dealt = np.array(state["dealt"], dtype=np.int64)
        self._lanes = [dict(lane) for lane in state["lanes"]]
        self._next_lane = state["next_lane"]

    def tokens_dealt(self) -> Tuple[int, ...]:
        """Tokens handed to lanes so far, per corpus."""
        return tuple(int(n) for n in self._dealt)
