"""The command line: `python3 -m training.bst_train COMMAND --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any, List, Optional, Sequence

from .corpus import Source, count_shared, read_texts, tokenize


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_argument
    commands("--corpus", action="append", required=True, metavar="PATH[:MEGABYTES]",
             help="JSON lines with a \"text\" each, plain, .xz or .gz; take this many megabytes "
                  "of it, a positive number (default: all). May be repeated.")
    commands("--vocab_size", type=int, default=4096, help="pieces (default %(default)s)")
    commands("--max_document_bytes", type=int, default=400_000,
             help="use this many characters of each document, which are as many bytes of ASCII, "
                  "so that no author dominates (default %(default)s)")
    commands("--seed", type=int, default=1, help="order of the documents (default %(default)s)")
    commands("--output", type=Path, required=True, help="the tokenizer.model to write")


def _run_tokenizer(args: argparse.Namespace) -> int:
    from .tokenizer import SentencePieceTokenizer, train_sentencepiece

    texts: List[str] = []
    for argument in args.corpus:
        source = Source.parse(argument, default=float("inf"))
        limit = source.weight * 1e6
        documents = list(read_texts(source.path))
        random.Random(args.seed).shuffle(documents)
        taken = 0
        for text in documents:
            if taken >= limit:
                break
            texts.append(text[: args.max_document_bytes])
            taken += len(texts[-1].encode("utf-8"))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(texts, args.output, args.vocab_size, sys.maxsize)
    tokenizer = SentencePieceTokenizer(args.output)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode("utf-8")) for text in texts)
    print(f"{args.output}: {tokenizer.vocab_size} pieces, {size / tokens:.3f} bytes per token")
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    from .optimizer import OptimizerConfig
    from .trainer import TrainConfig

    add = parser.add_argument
    add("--config", type=Path, required=True,
        help="the model, as the config.json of a checkpoint (see configs/)")
    add("--run_dir", type=Path, required=True,
        help="checkpoints, curve; a run that is there is resumed")
    add("--corpus", action="append", required=True, metavar="PATH[:WEIGHT]",
        help="training text, JSON lines, plain, .xz or .gz, with its share of the tokens: a "
             "positive number, relative to those of the other corpora (default 1). May be "
             "repeated.")
    add("--valid", type=Path, help="held-out text for the validation curve")
    add("--tokenizer", default="byte",
        help="\"byte\" or a SentencePiece model file (default %(default)s)")
    add("--cache_dir", type=Path, default=Path("token_cache"),
        help="where tokenised corpora are kept (default %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--device", default="cpu", help="a PyTorch device (default %(default)s)")
    _add_fields(parser, TrainConfig, {
        "max_tokens": "tokens to train on",
        "segment": "tokens per sequence and step",
        "sequences": "sequences per step, of all processes together",
        "lanes": "documents in progress, each with its carried state",
        "max_segments": "cut documents into pieces of 1 to this many segments; 0 leaves them whole",
        "min_tail": "skip the last stretch of a document if it is shorter than this",
        "ssm_init": "initialisation of SSMs: lin, inv or legs for s4d, legs or gss for dss",
        "seed": "of the weights and of the order of the text",
        "bf16": "BF16 autocast; only where the machine has BF16 instructions",
        "time_budget_s": "end after this many seconds even if tokens are left, with the learning "
                         "rate annealed to match; 0: no limit",
        "checkpoint_every_s": "seconds between checkpoints",
        "log_every": "steps between progress lines",
        "valid_every": "tokens between validations; 0: only at the end",
        "valid_tokens": "tokens of each held-out document that a validation reads; 0: all",
    })
    _add_fields(parser, OptimizerConfig, {
        "optimizer": "of the hidden matrices: muon or adamw",
        "matrix_lr": "peak learning rate of the hidden matrices; 0.02 suits muon, 3e-3 adamw",
        "embed_lr": "peak learning rate of the embedding",
        "ssm_lr": "peak learning rate of the SSM parameters",
        "filter_lr": "peak learning rate of the networks behind explicit filters",
        "other_lr": "peak learning rate of everything else: norms, position biases, initial states",
        "scale_lr": "peak learning rate of the attention scales",
        "momentum": "of muon",
        "beta1": "of adamw",
        "beta2": "of adamw",
        "weight_decay": "of the hidden matrices",
        "clip": "largest gradient norm",
        "warmup_steps": "steps of linear warm-up",
        "final_lr": "learning rate at the end of the cosine, relative to the peak",
    })


def _add_fields(parser: argparse.ArgumentParser, config: Any, helps: dict) -> None:
    """One option per field of a configuration dataclass, with its default."""
    for field in dataclasses.fields(config):
        if field.name not in helps:
            continue
        text = helps[field.name]
        if field.default is dataclasses.MISSING:
            parser.add_argument(f"--{field.name}", type=int, required=True, help=text)
        elif isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default,
                                help=f"{text} (default %(default)s)")


def _fields(config: Any, args: argparse.Namespace) -> dict:
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in vars(args).items() if name in names}


def _run_train(args: argparse.Namespace) -> int:
    import torch

    from .config import ModelConfig
    from .distributed import Group
    from .optimizer import OptimizerConfig
    from .tokenizer import load_tokenizer
    from .trainer import TrainConfig, Trainer, check_tokenizer, prepare_corpora

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    model_config = ModelConfig.load(args.config)
    tokenizer = load_tokenizer(args.tokenizer)
    check_tokenizer(model_config, tokenizer)   # before hours of tokenising
    sources = [Source.parse(argument) for argument in args.corpus]
    parameters = _fields(TrainConfig, args)
    parameters["optimizer"] = OptimizerConfig(**_fields(OptimizerConfig, args))
    config = TrainConfig(**parameters)
    corpora = prepare_corpora(sources, tokenizer, args.cache_dir)
    valid = tokenize(args.valid, tokenizer, args.cache_dir) if args.valid else None
    shared = count_shared(corpora, valid) if valid else 0
    if valid and shared:
        print(f"warning: --valid {args.valid}: {shared} of {len(valid)} documents are trained on, "
              "too; the validation curve does not show what the model makes of unseen text",
              file=sys.stderr)
    trainer = Trainer(
        model_config, config, corpora, [source.weight for source in sources], valid, tokenizer,
        args.run_dir, args.device, Group(),
    )
    trainer.run()
    return 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="an exported checkpoint directory")
    add("--corpus", type=Path, action="append", required=True,
        help="held-out text, JSON lines, plain, .xz or .gz. May be repeated.")
    add("--segment", type=int, default=4096, help="tokens at a time (default %(default)s)")
    add("--batch", type=int, default=1, help="documents side by side (default %(default)s)")
    add("--max_tokens_per_document", type=int, default=0, help="0: all of them")
    add("--cache_dir", type=Path, default=Path("token_cache"),
        help="where tokenised corpora are kept (default %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--json", type=Path, help="write the numbers to this file, too")


def _run_eval(args: argparse.Namespace) -> int:
    import torch

    from .checkpoint import load_model_and_tokenizer
    from .evaluate import evaluate

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    model, tokenizer = load_model_and_tokenizer(args.checkpoint)
    results = {}
    names = [path.name for path in args.corpus]
    for path in args.corpus:
        corpus = tokenize(path, tokenizer, args.cache_dir)
        result = evaluate(model, corpus, tokenizer, args.segment, args.batch,
                          args.max_tokens_per_document)
        # The name alone, unless another file has it, too.
        key = path.name if names.count(path.name) == 1 else str(path)
        results[key] = result.to_json()
        print(f"{path.name}\n{result.table()}\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run_dir", type=Path, required=True, help="a training run")
    add("--output", type=Path, required=True, help="the checkpoint directory to write")
    add("--tokenizer", type=Path, help="the SentencePiece model that the run was trained with")
    add("--dtype", choices=("bf16", "f32"), default="bf16",
        help="of the matrices (default %(default)s); SSM parameters, scales and biases are f32")


def _run_export(args: argparse.Namespace) -> int:
    import torch

    from .trainer import export_run

    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = export_run(args.run_dir, args.output, args.tokenizer, dtype)
    size = (args.output / "model.safetensors").stat().st_size
    print(f"{args.output}: {model.num_parameters()} parameters, {size / 1e6:.1f} MB")
    return 0


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="an exported checkpoint directory")
    add("--prompt", required=True, help="text to continue")
    add("--max_new_tokens", type=int, default=200, help="(default %(default)s)")
    add("--temperature", type=float, default=0.8,
        help="logits are divided by it; 0: always the likeliest token (default %(default)s)")
    add("--top_p", type=float, default=0.95,
        help="draw from the likeliest tokens that hold this share, up to 1 (default %(default)s)")
    add("--seed", type=int, default=1, help="(default %(default)s)")


def _run_sample(args: argparse.Namespace) -> int:
    from .checkpoint import load_model_and_tokenizer
    from .generate import sample_text

    model, tokenizer = load_model_and_tokenizer(args.checkpoint)
    print(args.prompt + sample_text(model, tokenizer, args.prompt, args.max_new_tokens,
                                    args.temperature, args.top_p, args.seed))
    return 0


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("curves", nargs="+", metavar="NAME=CSV", help="curve.csv or valid.csv")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")


def _run_plot(args: argparse.Namespace) -> int:
    from .plot import plot_curves

    curves = {}
    for argument in args.curves:
        name, separator, path = argument.partition("=")
        if not separator or not name or name in curves:
            reason = "is drawn already" if name in curves else "NAME=CSV is needed"
            raise ValueError(f"{argument}: {reason}")
        curves[name] = Path(path)
    plot_curves(curves, args.output)
    return 0


_COMMANDS = (
    ("tokenizer", "train a SentencePiece vocabulary", _add_tokenizer, _run_tokenizer),
    ("train", "train a model, or go on with a run", _add_train, _run_train),
    ("eval", "perplexity and bits per byte of a checkpoint, by position", _add_eval, _run_eval),
    ("export", "write a run's model as a checkpoint directory", _add_export, _run_export),
    ("sample", "continue a prompt with a checkpoint", _add_sample, _run_sample),
    ("plot", "draw loss curves", _add_plot, _run_plot),
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m training.bst_train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runners = {}
    for name, text, add, run in _COMMANDS:
        add(commands.add_parser(name, help=text, description=text))
        runners[name] = run
    args = parser.parse_args(argv)
    try:
        return runners[args.command](args)
    except (FloatingPointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
