"""The training loop.

One step takes a segment from each of a few lanes (see corpus), runs it behind the lane's carried
state, and updates the weights. A run directory holds

  train.json      the arguments of the run
  checkpoint.pt   everything needed to go on exactly where it stopped; replaced atomically, on disk
                  before the old one goes
  curve.csv       step, tokens, loss, learning rate, tokens per second, seconds; and valid.csv
  curve.png       the same as a picture
  max_tokens      optional, written by the user: a number that replaces the budget of the arguments.
                  Read at every progress line, so a run can be shortened or prolonged while it runs.

The learning rate follows the larger of two fractions: tokens of `max_tokens`, and time of
`time_budget_s` when that is set. Without a time budget a run that was interrupted and resumed ends
with the same weights, bit for bit, as one that was not. Several processes may share the work (see
distributed); the first of them writes the files. A run whose numbers are no longer finite ends with
an error and keeps its last checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch

from .checkpoint import export_model
from .config import ModelConfig
from .corpus import Batch, LaneSampler, Source, TokenizedCorpus, tokenize
from .distributed import Group
from .durable import replace_durably
from .evaluate import evaluate
from .kernels import SsmOptions
from .loss import token_losses
from .model import LanguageModel, ModelState, move_state, split_state, stack_states
from .optimizer import (
    OptimizerConfig,
    make_optimizers,
    matrix_and_other_parameters,
    schedule,
    set_learning_rates,
)
from .plot import plot_curves
from .tokenizer import BYTE_DIGEST, Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Lengths in tokens, times in seconds."""

    max_tokens: int
    segment: int = 4096               # tokens per sequence and step; a multiple of the window
    sequences: int = 2                # sequences per step, of all processes together
    lanes: int = 16                   # documents in progress
    max_segments: int = 0             # longest piece of a document; 0: whole documents
    min_tail: int = 512               # a document's last stretch, if shorter, is skipped
    seed: int = 1
    ssm_init: str = ""                # of the SSMs that know it; empty: each kernel's usual one
    bf16: bool = False                # autocast; slow on CPUs without BF16 instructions
    time_budget_s: float = 0.0        # 0: none
    checkpoint_every_s: float = 300.0
    log_every: int = 10               # steps
    valid_every: int = 0              # tokens; 0: at the end only
    valid_tokens: int = 16384         # of each held-out document; 0: all of them
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        for key in ("max_tokens", "segment", "sequences", "lanes", "log_every"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: {getattr(self, key)} is not positive")
        for key in (
            "max_segments", "min_tail", "seed", "time_budget_s", "checkpoint_every_s",
            "valid_every", "valid_tokens",
        ):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}: {getattr(self, key)} is not 0 or more")


class Trainer:
    """Trains one model in one run directory; resumes by itself when there is a checkpoint."""

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        corpora: Sequence[TokenizedCorpus],
        weights: Sequence[float],
        valid: Optional[TokenizedCorpus],
        tokenizer: Tokenizer,
        run_dir: Path,
        device: str = "cpu",
        group: Optional[Group] = None,
    ) -> None:
        if config.segment % model_config.window != 0:
            raise ValueError(
                f"segment {config.segment} is not a multiple of the window {model_config.window}"
            )
        check_tokenizer(model_config, tokenizer)
        self._group = group or Group()
        self._group.check(config.sequences, config.lanes)
        self.config = config
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._tokenizer = tokenizer
        self._valid = valid
        self._device = torch.device(device)
        torch.manual_seed(config.seed)
        options = [SsmOptions.of_init(layer.ssm, config.ssm_init) for layer in model_config.layers]
        if config.ssm_init and not any(option.init for option in options):
            raise ValueError(f"ssm_init: no layer's kernel knows {config.ssm_init!r}")
        self.model = LanguageModel(model_config, options).to(self._device)
        self._optimizers = make_optimizers(self.model, config.optimizer)
        self._sampler = LaneSampler(
            corpora, weights, tokenizer, config.segment, config.sequences, config.lanes,
            config.max_segments, config.min_tail, config.seed,
        )
        self._states: List[Optional[ModelState]] = [None] * config.lanes
        self._template: Optional[ModelState] = None
        self.step = 0
        self.tokens = 0
        self.elapsed_s = 0.0
        self._max_tokens = config.max_tokens
        self._curve: List[Dict[str, Any]] = []
        self._valid_curve: List[Dict[str, Any]] = []
        if self._checkpoint.exists():
            self._load()
        self._group.broadcast_parameters(self.model.parameters())

    @property
    def _checkpoint(self) -> Path:
        return self.run_dir / "checkpoint.pt"

    def _save(self) -> None:
        """Writes the checkpoint and the curves. All processes must call this together."""
        # Finite gradients can still end in weights that are not. All processes have the same ones.
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise FloatingPointError(f"step {self.step}: {name} is not finite; nothing is saved")
        own = self._group.own_rows(range(self.config.lanes))
        states = self._group.collect({lane: self._states[lane] for lane in own})
        if not self._group.is_first:
            return
        state = {
            "model_config": self.model.config.to_json(),
            "model": self.model.state_dict(),
            "tokenizer": self._tokenizer.digest,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "sampler": self._sampler.state_dict(),
            "states": [states[lane] for lane in range(self.config.lanes)],
            "step": self.step,
            "tokens": self.tokens,
            "elapsed_s": self.elapsed_s,
            "curve": self._curve,
            "valid_curve": self._valid_curve,
        }
        scratch = self._checkpoint.with_suffix(".partial")
        torch.save(state, scratch)
        replace_durably(scratch, self._checkpoint)
        for name, rows in (("curve", self._curve), ("valid", self._valid_curve)):
            if rows:
                with open(self.run_dir / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        if self._curve:
            plot_curves({self.run_dir.name: self.run_dir / "curve.csv"}, self.run_dir / "curve.png")

    def _load(self) -> None:
        state = load_training_checkpoint(self._checkpoint)
        if state["model_config"] != self.model.config.to_json():
            raise ValueError(f"{self._checkpoint} holds another model configuration")
        _check_digest(self._checkpoint, state, self._tokenizer.digest)
        # Nothing else that may change between a run's starts has a part in the names.
        different = sorted(set(self.model.state_dict()) ^ set(state["model"]))
        if different:
            raise ValueError(
                f"{self._checkpoint} is of a run with another --ssm_init: {different[0]} is "
                f"{'in it' if different[0] in state['model'] else 'not in it'}"
            )
        self.model.load_state_dict(state["model"])
        groups = [len(optimizer.param_groups) for optimizer in self._optimizers]
        if groups != [len(saved["param_groups"]) for saved in state["optimizers"]]:
            raise ValueError(f"{self._checkpoint} is of a run with another --optimizer")
        for optimizer, saved in zip(self._optimizers, state["optimizers"]):
            # The moments are the run's, the settings are the arguments', which train.json records.
            settings = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved)
            for group, setting in zip(optimizer.param_groups, settings):
                group.update(setting)
        self._sampler.load_state_dict(state["sampler"])
        # The file is read into main memory, wherever its tensors were.
        self._states = [move_state(lane, self._device) for lane in state["states"]]
        self._template = next((s for s in self._states if s is not None), None)
        self.step = state["step"]
        self.tokens = state["tokens"]
        self.elapsed_s = state["elapsed_s"]
        self._curve = state["curve"]
        self._valid_curve = state["valid_curve"]

    def _autocast(self) -> ContextManager[Any]:
        if not self.config.bf16:
            return contextlib.nullcontext()
        return torch.autocast(device_type=self._device.type, dtype=torch.bfloat16)

    def _read_budget(self) -> None:
        """Takes over the budget that the user may have written beside the run."""
        path = self.run_dir / "max_tokens"
        if not self._group.is_first or not path.exists():
            return
        text = path.read_text(encoding="utf-8").strip()
        if not (text.isdecimal() and int(text) > 0):
            print(f"{path}: {text!r} is not a number of tokens; the budget stays "
                  f"{self._max_tokens}", flush=True)
        elif int(text) != self._max_tokens:
            self._max_tokens = int(text)
            print(f"{path}: the budget is {text} tokens from now on", flush=True)

    def _progress(self) -> float:
        progress = self.tokens / self._max_tokens
        if self.config.time_budget_s > 0:
            progress = max(progress, self.elapsed_s / self.config.time_budget_s)
        return progress

    def _train_step(self) -> Tuple[float, int, float]:
        """One update. Returns the mean loss, the tokens counted and the relative learning rate."""
        whole = self._sampler.next_batch()
        own = self._group.own_rows(whole.lanes)
        batch = Batch(
            [whole.lanes[row] for row in own], whole.fresh[own], whole.inputs[own],
            whole.targets[own],
        )
        inputs = torch.from_numpy(batch.inputs).to(self._device)
        targets = torch.from_numpy(batch.targets).to(self._device)
        fresh = torch.from_numpy(batch.fresh).to(self._device)
        state: Optional[ModelState] = None
        if self._template is not None:
            rows = [None if f else self._states[l] for f, l in zip(batch.fresh, batch.lanes)]
            state = stack_states(rows, self._template)
        with self._autocast():
            hidden, after = self.model.hidden(inputs, state, fresh)
        if self.config.bf16:
            hidden = hidden.bfloat16()
        losses = token_losses(self.model, hidden, targets)
        counted = int((whole.targets >= 0).sum())
        loss = losses.sum() / counted
        loss.backward()
        self._group.add_gradients(list(self.model.parameters()))
        for lane, row in zip(batch.lanes, split_state(after)):
            self._states[lane] = row
            self._template = row
        factor = schedule(self.step, self._progress(), self.config.optimizer)
        set_learning_rates(self._optimizers, factor)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        )
        # Both are sums over all processes, so that all of them stop and none waits for another.
        mean = self._group.add(float(loss.detach()))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: the loss is {mean}, the norm of its gradients {norm}"
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.model.project()
        self.step += 1
        self.tokens += counted
        return mean, counted, factor

    def _validate(self) -> None:
        if self._valid is None or not self._group.is_first:
            return
        if any(row["step"] == self.step for row in self._valid_curve):
            return
        result = evaluate(
            self.model, self._valid, self._tokenizer, self.config.segment,
            max_tokens_per_document=self.config.valid_tokens,
        )
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "nats_per_token": round(result.total.nats_per_token, 5),
            "bits_per_byte": round(result.total.bits_per_byte, 5),
        }
        self._valid_curve.append(row)
        print(f"valid step {self.step} tokens {self.tokens} "
              f"nats/token {result.total.nats_per_token:.4f} "
              f"bits/byte {result.total.bits_per_byte:.4f}", flush=True)

    def run(self, max_steps: Optional[int] = None) -> None:
        """Trains until the budget is used up, or for `max_steps` more steps; then saves."""
        config = self.config
        is_first = self._group.is_first
        matrix, other = matrix_and_other_parameters(self.model)
        if is_first:
            print(f"parameters {matrix + other}: {matrix} in hidden matrices, {other} elsewhere; "
                  f"starting at step {self.step}, {self.tokens} tokens", flush=True)
            (self.run_dir / "train.json").write_text(
                json.dumps(dataclasses.asdict(config), indent=1) + "\n", encoding="utf-8"
            )
        started = time.monotonic() - self.elapsed_s
        last_save = time.monotonic()
        last_log = time.monotonic()
        nats = 0.0
        tokens = 0
        self._read_budget()
        self._max_tokens = int(self._group.agree([self._max_tokens])[0])
        stop_at = None if max_steps is None else self.step + max_steps
        while self._progress() < 1.0 and (stop_at is None or self.step < stop_at):
            before = self.tokens
            loss, counted, factor = self._train_step()
            save = time.monotonic() - last_save > config.checkpoint_every_s
            # Clocks differ, decisions must not.
            self.elapsed_s, save, budget = self._group.agree(
                [time.monotonic() - started, save, self._max_tokens]
            )
            self._max_tokens = int(budget)
            nats += loss * counted
            tokens += counted
            if self.step % config.log_every == 0:
                now = time.monotonic()
                speed = tokens / (now - last_log)
                remaining = (1.0 / max(self._progress(), 1e-9) - 1.0) * self.elapsed_s
                self._curve.append({
                    "step": self.step,
                    "tokens": self.tokens,
                    "loss": round(nats / tokens, 5),
                    "lr": round(factor, 5),
                    "tokens_per_s": round(speed, 1),
                    "elapsed_s": round(self.elapsed_s, 1),
                })
                if is_first:
                    print(f"step {self.step} tokens {self.tokens} loss {nats / tokens:.4f} "
                          f"lr {factor:.3f} {speed:.0f} tokens/s ETA {remaining / 60:.1f} min",
                          flush=True)
                nats, tokens, last_log = 0.0, 0, now
                self._read_budget()
            every = config.valid_every
            if every > 0 and self.tokens // every > before // every:
                self._validate()
                last_log = time.monotonic()
                nats, tokens = 0.0, 0
            if save:
                self._save()
                last_save = time.monotonic()
        if self._progress() >= 1.0:
            self._validate()
        self._save()


def check_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless text of that tokenizer is what the configuration says it is."""
    is_byte = tokenizer.digest == BYTE_DIGEST
    if is_byte != (config.tokenizer_file is None):
        wanted = config.tokenizer_file or "bytes"
        raise ValueError(
            f"the configuration's vocabulary is {wanted}, "
            f"the tokenizer's is {'bytes' if is_byte else 'a SentencePiece model'}"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} pieces, the model {config.vocab_size}"
        )
    for key, actual in (
        ("bos_token_id", tokenizer.bos_id),
        ("eos_token_id", tokenizer.eos_id),
        ("pad_token_id", tokenizer.pad_id),
    ):
        expected = getattr(config, key)
        # Text holds no padding, so a model may do without.
        if expected != actual and not (key == "pad_token_id" and expected is None):
            raise ValueError(f"{key} is {expected} in the configuration, {actual} in the vocabulary")


def _check_digest(path: Path, state: Dict[str, Any], digest: str) -> None:
    """Raises ValueError where a run was trained with another vocabulary; older runs do not say."""
    trained = state.get("tokenizer", digest)
    if trained != digest:
        raise ValueError(f"{path} was trained with the vocabulary {trained}, not {digest}")


def check_run_tokenizer(path: Path, state: Dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises ValueError unless the run of the checkpoint `path`, which holds `state`, has that
    vocabulary: with another one its model would be judged, or served, on meaningless ids."""
    check_tokenizer(ModelConfig.from_json(state["model_config"]), tokenizer)
    _check_digest(path, state, tokenizer.digest)


def load_training_checkpoint(path: Path) -> Dict[str, Any]:
    """The contents of a run's checkpoint.pt. Only for files one has written oneself (pickle)."""
    try:
        state: Dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except TypeError:   # PyTorch before 1.13.1 has no weights_only
        state = torch.load(path, map_location="cpu")
    return state


def model_from_run(run_dir: Path) -> LanguageModel:
    """The model of a run directory's latest checkpoint."""
    return model_of(load_training_checkpoint(Path(run_dir) / "checkpoint.pt"))


def export_run(
    run_dir: Path, directory: Path, tokenizer_model: Optional[Path], dtype: torch.dtype
) -> LanguageModel:
    """Writes the model of a run directory as a checkpoint directory (see export_model).

    Raises ValueError where the vocabulary is not the configuration's, or the run's.
    """
    path = Path(run_dir) / "checkpoint.pt"
    state = load_training_checkpoint(path)
    model = model_of(state)
    if model.config.tokenizer_file is None or tokenizer_model is not None:
        check_run_tokenizer(path, state, load_tokenizer(tokenizer_model))
    export_model(model, directory, tokenizer_model, dtype)
    return model


def model_of(state: Dict[str, Any]) -> LanguageModel:
    """The model of a run, of which `state` is the checkpoint."""
    config = ModelConfig.from_json(state["model_config"])
    names = state["model"]
    options = [SsmOptions.of_tensors(names, index) for index in range(len(config.layers))]
    model = LanguageModel(config, options)
    model.load_state_dict(state["model"])
    return model


def prepare_corpora(
    sources: Sequence[Source], tokenizer: Tokenizer, cache_dir: Path
) -> List[TokenizedCorpus]:
    """Tokenises every source, or loads it from the cache, and says how large it is."""
    corpora = []
    for source in sources:
        corpus = tokenize(source.path, tokenizer, cache_dir)
        print(f"{source.path}: {len(corpus)} documents, {len(corpus.ids)} tokens, "
              f"{corpus.bytes.sum() / len(corpus.ids):.3f} bytes per token, "
              f"weight {source.weight}", flush=True)
        corpora.append(corpus)
    return corpora
