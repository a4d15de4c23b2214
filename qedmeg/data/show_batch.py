"""`python -m qedmeg show-batch`: what a model is trained on, as text, exactly as the trainer gets it."""

import argparse
import itertools
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from qedmeg.config import DataConfig
from qedmeg.data.documents import DocumentStore, Summary, load_documents
from qedmeg.data.loader import Step, TrainLoader
from qedmeg.data.packing import PackedBatch
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from qedmeg.model.checkpoint_folder import read_checkpoint_folder
from qedmeg.settings import Settings, describe, load_config

# Data is anybody's: an escape sequence in it must not reach the terminal.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _ModelSection(Settings, extra="ignore"):
    hf: str | None = None
    """The model's Hugging Face folder or hub id, read for its tokenizer where data.tokenizer is not set."""
    megatron: Path | None = None
    """A Megatron checkpoint folder, whose tokenizer is read where neither of the others is set."""


class _ShowBatchSettings(Settings, extra="ignore"):
    """The two sections of any recipe's settings that this command needs."""

    data: DataConfig
    model: _ModelSection = _ModelSection()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `show-batch` on its (sub)parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Print packed batches decoded, with what is trained on marked: coloured on a terminal, «like this» elsewhere.\n"
        "Tokenises the documents if they are not yet, and with that checks every row."
    )
    parser.epilog = (
        "example:\n"
        "  python -m qedmeg show-batch --config recipes/configs/sft.yaml data.tokens_per_microbatch=8192 --step 3\n\n"
        "settings (sections data and model of any recipe's file):\n" + describe(_ShowBatchSettings)
    )
    parser.add_argument("--config", type=Path, required=True, help="settings file of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the file's")
    parser.add_argument("--step", type=int, default=0, help="which optimizer step, from 0 (default 0)")
    parser.add_argument("--microbatches", type=int, default=1, help="how many of its microbatches (default 1)")


def main(args: argparse.Namespace) -> int:
    """Run the command. Raises UserError for whatever is wrong with settings, tokenizer or rows."""
    if args.step < 0 or args.microbatches < 1:
        raise UserError(f"--step {args.step} --microbatches {args.microbatches}: expected at least 0 and 1")
    settings = load_config(_ShowBatchSettings, args.config, args.overrides)
    source = settings.data.tokenizer or settings.model.hf
    if source is None and settings.model.megatron is not None:
        source = str(read_checkpoint_folder(settings.model.megatron).hf)
    if source is None:
        raise UserError(
            f"{args.config}: neither data.tokenizer, model.hf nor model.megatron is set: there is no tokenizer to read"
        )
    tokenizer = load_tokenizer(source, settings.data.chat_template)
    train, validation = load_documents(settings.data, tokenizer)

    console = Console(highlight=False, soft_wrap=True)
    _print_store(console, "training", train.summary)
    if validation is not None:
        _print_store(console, "validation", validation.summary)
    step = _step_number(train, settings.data, tokenizer, args.step)
    console.print(
        f"step {args.step}: {len(step.documents)} documents, {step.tokens:,} tokens, {step.trained_tokens:,} trained "
        f"on, in {len(step.microbatches)} microbatches of {step.microbatches[0].tokens_T.numel():,} tokens "
        f"filled to {step.fill:.1%}"
    )
    for number, batch in enumerate(step.microbatches[: args.microbatches]):
        _print_batch(console, number, batch, tokenizer)
    return 0


def _step_number(train: DocumentStore, config: DataConfig, tokenizer: Tokenizer, number: int) -> Step:
    loader = TrainLoader(train, config, tokenizer.pad_id, total_steps=number + 1)
    start = number * config.prompts_per_step
    epoch, position = divmod(start, len(train))
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": position})
    return next(iter(loader))


def _print_store(console: Console, name: str, summary: Summary) -> None:
    console.print(
        f"{name}: {summary.source}: {summary.documents:,} documents, {summary.tokens:,} tokens, "
        f"{summary.trained_tokens / summary.tokens:.1%} trained on, longest {summary.longest:,}, "
        f"{summary.dropped_too_long:,} dropped as too long"
    )


def _print_batch(console: Console, number: int, batch: PackedBatch, tokenizer: Tokenizer) -> None:
    length, trained = len(batch.tokens_T), int(batch.mask_T.sum())
    bounds = batch.cu_seqlens.tolist()
    console.rule(f"microbatch {number}: {batch.documents} documents, {trained:,} of {length:,} positions trained on")
    unstopped: set[int] = set()
    for document in range(batch.documents):
        start, stop = bounds[document], bounds[document + 1]
        tokens = batch.tokens_T[start:stop].tolist()
        # mask_T[t] speaks of the token at t + 1
        marks = [False, *batch.mask_T[start : stop - 1].bool().tolist()]
        console.rule(f"document {document}: positions {start} to {stop - 1}, {sum(marks)} trained on", style="dim")
        unstopped |= _print_document(console, tokens, marks, tokenizer)
    if batch.documents < len(bounds) - 1:
        console.rule(f"padding: positions {bounds[-2]} to {bounds[-1] - 1}", style="dim")
    if unstopped:
        ends = ", ".join(repr(tokenizer.decode([token])) for token in sorted(unstopped))
        stops = ", ".join(repr(tokenizer.decode([token])) for token in sorted(tokenizer.stop_ids))
        console.print(
            f"warning: turns end with {ends}, where generation does not stop (it stops at {stops}): add it to "
            "eos_token_id in generation_config.json"
        )


def _print_document(console: Console, tokens: list[int], marks: list[bool], tokenizer: Tokenizer) -> set[int]:
    """Print a document and give back the tokens that end a trained turn and are no stop tokens."""
    text = Text()
    ends: set[int] = set()
    for trained, run in itertools.groupby(zip(tokens, marks, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        shown = _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", tokenizer.decode(ids))
        if trained:
            text.append(shown if console.is_terminal else f"«{shown}»", style="bold green")
            ends.add(ids[-1])
        else:
            text.append(shown, style="dim")
    console.print(text)
    return ends - tokenizer.stop_ids
