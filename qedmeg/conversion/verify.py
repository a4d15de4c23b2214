"""Are two stored models the same? Tensors, config, tokenizer, logits, and what vLLM says of the same tokens."""

import argparse
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from qedmeg.conversion import engines
from qedmeg.conversion.engines import EngineFailed, Job
from qedmeg.conversion.report import Check, Report, TensorResult
from qedmeg.conversion.stored import HuggingFaceModel, StoredModel, nbytes
from qedmeg.errors import UserError, near_miss
from qedmeg.model import weights
from qedmeg.model.tensor_bytes import blocks
from qedmeg.monitor.progress import track

CHECKS = ("tensors", "config", "tokenizer", "logits", "vllm")

LOGITS_BOUND = 1e-5
LOGPROBS_BOUND = 1e-4
PROMPT_TOKENS = 48
TEXTS = (
    "Prove that the sum of two even integers is even.",
    "Let $n \\ge 1$. Then $\\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}$.\n\nProof. By induction on $n$; the case $n = 1$ is",
    "  Tabs\tand  spaces,\n\nnew lines; 1234567890 3.14159 −2 ≤ x² ≠ ½\n",
    "证明：若 a ≡ b (mod n)，则 a² ≡ b²。Ça marche : ∀ε>0 ∃δ>0 🙂",
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n",
)
"""Both sides' tokenizers encode them, and both sides' models are asked of their tokens."""

# not part of what the model is: where it came from, and the dtype, which the tensors themselves show
_CONFIG_IGNORED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_IMPORTS_BYTES = 2 * 10**9


def add_checks_argument(parser: argparse.ArgumentParser) -> None:
    """`--checks NAME,NAME,...`, as a tuple of known names, not empty."""
    parser.add_argument(
        "--checks",
        type=_known_checks,
        default=CHECKS,
        help=f"which of {','.join(CHECKS)} to make (default: all)",
    )


def _known_checks(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    for name in names:
        if name not in CHECKS:
            raise UserError(f"--checks: '{name}' is not known{near_miss(name, CHECKS)}; known: {', '.join(CHECKS)}")
    if not names:
        raise UserError(f"--checks: names no check, and nothing would be proved; known: {', '.join(CHECKS)}")
    return names


def verify(first: StoredModel, second: StoredModel, checks: Collection[str] = CHECKS) -> Report:
    """Compare two stored models in the ways that `checks` names.

    Raises:
        UserError: the models are not of one shape, so that there is nothing to compare.
    """
    _check_same_shape(first, second)
    tensors: list[TensorResult] = []
    found: list[Check] = []
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def add(check: Check) -> None:
        nonlocal started
        found.append(check)
        seconds[check.name], started = time.monotonic() - started, time.monotonic()

    if "tensors" in checks:
        tensors = compare_tensors(first, second)
        add(_tensor_check(tensors))
    if "config" in checks:
        add(compare_configs(first.hf, second.hf))
    if "tokenizer" in checks:
        add(compare_tokenizers(first.hf, second.hf))
    if "logits" in checks or "vllm" in checks:
        tokens = prompts(first)
        ask = _asker(tokens)
        if "logits" in checks:
            add(compare_logits(first, second, ask))
        served = next((side for side in (second, first) if isinstance(side, HuggingFaceModel)), None)
        if "vllm" in checks and served is not None:
            add(compare_with_vllm(served, tokens, ask))
    model = first.model
    elements = sum(math.prod(tensor.shape) for tensor in weights.global_tensors(model).values())
    described = f"{model.name}, {model.layers} layers, {elements:,} parameters"
    return Report(
        "verify", str(first.path), str(second.path), described, found, tensors, first.notes + second.notes, seconds
    )


def _check_same_shape(first: StoredModel, second: StoredModel) -> None:
    """Refuse models whose tensors are not the same by name and shape."""
    if weights.global_tensors(first.model) == weights.global_tensors(second.model):
        return
    fields = [
        f"{field} {getattr(first.model, field)} and {getattr(second.model, field)}"
        for field in (
            "name",
            "layers",
            "hidden",
            "ffn_hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "vocabulary",
            "tied",
            "experts",
        )
        if getattr(first.model, field) != getattr(second.model, field)
    ]
    raise UserError(f"{second.path}: is of another model than {first.path}: {', '.join(fields)}; give two of one model")


def compare_tensors(first: StoredModel, second: StoredModel) -> list[TensorResult]:
    """Every tensor of both, read a block at a time and compared bit for bit."""
    results = []
    tensors = weights.global_tensors(first.model)
    for tensor in track(tensors.values(), "compare tensors", len(tensors)):
        dtypes = [first.dtype(tensor), second.dtype(tensor)]
        differing = 0
        for start, stop in blocks(tensor.shape, dtypes[1]):
            one, other = (side.read(tensor, start, stop).to(dtypes[1]) for side in (first, second))
            differing += _differing(one, other)
        results.append(
            TensorResult(
                name=tensor.key,
                sources=[source.name for source in tensor.sources],
                shape=list(tensor.shape),
                dtypes=[str(dtype).removeprefix("torch.") for dtype in dtypes],
                equal=not differing,
                differing=differing,
            )
        )
    return results


def _differing(one: torch.Tensor, other: torch.Tensor) -> int:
    """Elements whose bits differ; 0.0 and -0.0 do, and a NaN equals itself."""
    bits = torch.int32 if one.itemsize == 4 else torch.int16
    views = [tensor.view(-1).view(bits).numpy() for tensor in (one, other)]
    first, second = (view.view(np.int64) if view.nbytes % 8 == 0 else view for view in views)  # twice as fast
    return 0 if np.array_equal(first, second) else int(np.count_nonzero(views[0] != views[1]))


def _tensor_check(tensors: Sequence[TensorResult]) -> Check:
    wrong = [tensor for tensor in tensors if not tensor.equal]
    rounded = sum(len(set(tensor.dtypes)) > 1 for tensor in tensors)
    figures = {"tensors": len(tensors), "differing_tensors": len(wrong), "rounded_tensors": rounded}
    if wrong:
        first = f"first {wrong[0].name} in {wrong[0].differing} elements"
        return Check("tensors", "differs", f"{len(wrong)} of {len(tensors)} differ, {first}", figures)
    after = f", {rounded} of them after rounding to the second's dtype" if rounded else ""
    return Check("tensors", "equal", f"{len(tensors)} tensors are equal bit for bit{after}", figures)


def compare_configs(first: Path, second: Path) -> Check:
    """Every field of `config.json` and of `generation_config.json`, where there is one, save dtype and provenance."""
    wrong = []
    for name in ("config.json", "generation_config.json"):
        one, other = (_read_json(folder / name) for folder in (first, second))
        for field in sorted(one.keys() | other.keys()):
            if field not in _CONFIG_IGNORED and one.get(field) != other.get(field):
                wrong.append(f"{name}: {field}: {one.get(field)!r} and {other.get(field)!r}")
    if wrong:
        return Check("config", "differs", "; ".join(wrong), {"differing_fields": len(wrong)})
    return Check("config", "equal", "every field of config.json and generation_config.json is equal")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; fetch it again")
    return content


def compare_tokenizers(first: Path, second: Path) -> Check:
    """The tokenizer's files byte for byte, and what it makes of `TEXTS`."""
    names = [name for name in TOKENIZER_FILES if (first / name).is_file() or (second / name).is_file()]
    if not names:
        return Check("tokenizer", "not run", "there are no tokenizer files")
    wrong = [name for name in names if _bytes(first / name) != _bytes(second / name)]
    encoded = [encode(folder) for folder in (first, second)]
    same = encoded[0] == encoded[1]
    if encoded[0] is None and same:
        texts = "the texts were not encoded: there is neither tokenizer.json nor tokenizer.model"
    else:
        texts = f"{len(TEXTS)} texts are encoded to {'the same' if same else 'other'} tokens"
    if wrong or not same:
        return Check("tokenizer", "differs", f"{', '.join(wrong) or 'no file'} differs; {texts}")
    return Check("tokenizer", "equal", f"{', '.join(names)} are equal; {texts}", {"files": len(names)})


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def encode(folder: Path) -> list[list[int]] | None:
    """The token ids of `TEXTS`, by the libraries that transformers' tokenizers rest on; None without a tokenizer.

    Raises:
        UserError: the tokenizer's file cannot be read.
    """
    for name in ("tokenizer.json", "tokenizer.model"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            if name == "tokenizer.json":
                from tokenizers import Tokenizer

                return [encoding.ids for encoding in Tokenizer.from_file(str(path)).encode_batch(list(TEXTS))]
            from sentencepiece import SentencePieceProcessor

            return [list(ids) for ids in SentencePieceProcessor(model_file=str(path)).encode(list(TEXTS))]
        except Exception as error:  # both libraries raise plain ones
            raise UserError(f"{path}: not a tokenizer ({' '.join(str(error).split())}); fetch it again") from None
    return None


def prompts(stored: StoredModel) -> list[list[int]]:
    """Token ids to ask the models of: those of `TEXTS`, and a row drawn from the whole vocabulary."""
    longest = min(PROMPT_TOKENS, stored.model.max_positions)
    texts = [[token for token in ids if token < stored.model.vocabulary] for ids in encode(stored.hf) or []]
    drawn: list[int] = np.random.default_rng(0).integers(stored.model.vocabulary, size=PROMPT_TOKENS).tolist()
    return [ids[:longest] for ids in [*texts, drawn] if len(ids) > 1]


Ask = Callable[[Sequence[Job]], list[list[npt.NDArray[np.float32]]]]


def _asker(tokens: list[list[int]]) -> Ask:
    """`engines.ask` about the same tokens each time, which asks nothing twice."""
    answers: dict[Job, list[npt.NDArray[np.float32]]] = {}

    def ask(jobs: Sequence[Job]) -> list[list[npt.NDArray[np.float32]]]:
        new = [job for job in dict.fromkeys(jobs) if job not in answers]
        if new:
            answers.update(zip(new, engines.ask(new, tokens), strict=True))
        return [answers[job] for job in jobs]

    return ask


def compare_logits(first: StoredModel, second: StoredModel, ask: Ask) -> Check:
    """Logits in fp32 of both sides, Hugging Face's by transformers and Megatron's by Megatron-core.

    The bound is relative to the largest logit where that is over 1, as the resolution of fp32 is.
    """
    size = nbytes(first, torch.float32) * 1.3
    if lacking := _lacking_memory(size):
        return Check("logits", "not run", lacking)
    jobs = [_job(first), _job(second)]
    try:
        one, other = [*ask(jobs[:1]), *ask(jobs[1:])] if _lacking_memory(2 * size + _IMPORTS_BYTES) else ask(jobs)
    except EngineFailed as failure:
        return Check("logits", "failed", str(failure))
    largest = float(np.max([np.abs(logits_TV).max() for logits_TV in one]))
    difference = float(np.max([np.abs(a_TV - b_TV).max() for a_TV, b_TV in zip(one, other, strict=True)]))
    figures = {"maximum_difference": difference, "largest_logit": largest, "bound": LOGITS_BOUND * max(1.0, largest)}
    detail = (
        f"maximum difference {difference:.1e} (bound {figures['bound']:.1e}, largest logit {largest:.1f}) over "
        f"{sum(map(len, one))} tokens in fp32: {_job(first).engine} and {_job(second).engine}"
    )
    return Check("logits", "equal" if difference <= figures["bound"] else "differs", detail, figures)


def compare_with_vllm(served: HuggingFaceModel, tokens: list[list[int]], ask: Ask) -> Check:
    """vLLM's logprobs of the tokens of a Hugging Face folder in fp32, against transformers' of the same folder."""
    if not engines.has_vllm():
        return Check("vllm", "not run", "vllm is not installed")
    if not torch.cuda.is_available() and served.model.head_dim not in engines.CPU_HEAD_DIMS:
        takes = ", ".join(map(str, engines.CPU_HEAD_DIMS))
        return Check("vllm", "not run", f"head_dim {served.model.head_dim}: vLLM on a CPU takes {takes}")
    # vLLM keeps a second, rearranged copy of the weights
    if lacking := _lacking_memory(nbytes(served, torch.float32) * 2.3):
        return Check("vllm", "not run", lacking)
    try:
        (logits,) = ask([_job(served)])
        (logprobs,) = ask([Job("vllm", str(served.path))])
    except EngineFailed as failure:
        return Check("vllm", "failed", str(failure))
    differences = []
    for ids, logits_TV, logprobs_T in zip(tokens, logits, logprobs, strict=True):
        expected_TV = torch.from_numpy(logits_TV[:-1]).double().log_softmax(-1)
        expected_T = expected_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        differences.append(np.abs(expected_T - logprobs_T).max())
    difference = float(np.max(differences))  # Python's max would pass over a NaN
    figures = {"maximum_difference": difference, "bound": LOGPROBS_BOUND}
    detail = (
        f"maximum difference of logprobs {difference:.1e} (bound {LOGPROBS_BOUND:.0e}) over "
        f"{sum(map(len, logprobs))} tokens in fp32: transformers and vllm"
    )
    return Check("vllm", "equal" if difference <= LOGPROBS_BOUND else "differs", detail, figures)


def _job(side: StoredModel) -> Job:
    return Job("transformers" if isinstance(side, HuggingFaceModel) else "megatron", str(side.path))


def _lacking_memory(size: float) -> str:
    """Why a model that takes `size` bytes cannot be held; empty where it can."""
    needed, free = size + _IMPORTS_BYTES, psutil.virtual_memory().available
    return f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB free" if needed > free else ""
