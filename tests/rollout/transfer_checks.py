"""After a transfer vLLM's log-probabilities are transformers' with the new weights: the checks, of any engine."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint
from tests.rollout.transfer_ends import CALL_SECONDS, HttpControl, PipeControl, send_each

PROMPTS = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(2)).tolist()
TOLERANCE = 1e-4


class Weights:
    """Two checkpoints of one architecture, A and B."""

    def __init__(self, folder: Path, family: str, tied: bool) -> None:
        self.a, self.b = folder / "a", folder / "b"
        self.models = {}
        for number, path in enumerate((self.a, self.b)):
            model = make_checkpoint(path, family, tie_word_embeddings=tied)
            if number:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.05 * torch.randn_like(parameter)
                model.save_pretrained(path)
            self.models[path] = model.eval()

    def logprobs(self, path: Path, tokens: list[int]) -> np.ndarray:
        """Of tokens 1, 2, ..., by transformers."""
        with torch.no_grad():
            logprobs_TV = self.models[path](torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        return logprobs_TV.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()

    def check(self, path: Path, told: list[np.ndarray]) -> None:
        for prompt, logprobs in zip(PROMPTS, told, strict=True):
            np.testing.assert_allclose(logprobs, self.logprobs(path, prompt), rtol=0, atol=TOLERANCE)

    def check_answers(self, path: Path, told: list[tuple[list[int], list[float]]]) -> None:
        for prompt, (tokens, logprobs) in zip(PROMPTS, told, strict=True):
            expected = self.logprobs(path, prompt + tokens)[len(prompt) - 1 :]
            np.testing.assert_allclose(logprobs, expected, rtol=0, atol=TOLERANCE)


def _ask(engine: PipeControl) -> Any:
    """Logprobs of the prompts, and generations, which would find the prompts' keys and values in a stale cache."""
    return engine.call("logprobs", PROMPTS), engine.call("greedy", PROMPTS, 8), engine.call("sampled", PROMPTS, 40)


def check_in_process(ranks: Any, engine: PipeControl, weights: Weights) -> None:
    """A trainer that sends three times, then another one, which connects anew."""
    folders = [weights.a, weights.b, weights.a]
    sizes = {"tp": 2, "sp": True}
    first, second = ranks(send_each, 2, folders, sizes, [engine], CALL_SECONDS, 1, _ask)
    for number, (folder, report, told) in enumerate(zip(folders, *first, strict=True), 1):
        logprobs, *answers = told[engine.name]
        weights.check(folder, logprobs)
        for of_one_kind in answers:
            weights.check_answers(folder, of_one_kind)
        assert (report.version, report.received, report.lost) == (number, (engine.name,), {})
        assert report.bytes == sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
        assert 0 < report.fixed_seconds < report.seconds
    assert second == (first[0], [{}] * 3)
    (_, told), _ = ranks(send_each, 2, [weights.b], {"pp": 2}, [engine], CALL_SECONDS, 7, _ask)
    weights.check(weights.b, told[0][engine.name][0])


def _paused(engine: HttpControl, send: Callable[[], Any]) -> Any:
    """As the fleet does it."""
    engine.post("pause?mode=keep&clear_cache=true")
    result = send()
    engine.post("resume")
    return result


def _send(ranks: Any, engine: HttpControl, folder: Path, version: int) -> None:
    arguments = ([folder], {"tp": 2, "sp": True}, [engine], CALL_SECONDS, version)
    reports, _ = _paused(engine, lambda: ranks(send_each, 2, *arguments))[0]
    assert reports[0].received == (engine.name,), reports[0].lost


def check_over_http(ranks: Any, engine: HttpControl, weights: Weights) -> None:
    """A server, idle."""
    for version, folder in ((1, weights.b), (2, weights.a)):
        _send(ranks, engine, folder, version)
        weights.check(folder, engine.logprobs(PROMPTS))
        weights.check_answers(folder, engine.greedy(PROMPTS, 8))


def check_in_flight(ranks: Any, engine: HttpControl, weights: Weights) -> None:
    """Requests that are paused go on with the new weights: each token has the log-probability of its own version."""
    folders = {"10": weights.a, "11": weights.b, "12": weights.a, "13": weights.b}
    _send(ranks, engine, folders["10"], 10)
    sent = threading.Event()
    warm = threading.Barrier(len(PROMPTS) + 1)

    def ask(prompt: list[int], seed: int) -> list[Any]:
        answers = [(prompt, *engine.sample(prompt, 100, 1.0, seed))]
        warm.wait(CALL_SECONDS)
        while not sent.is_set():  # so that one is under way at any time
            answers.append((prompt, *engine.sample(prompt, 1500, 1.0, seed)))
        return answers

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        asking = [pool.submit(ask, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
        try:
            warm.wait(CALL_SECONDS)
            for version in (11, 12, 13):
                time.sleep(0.4)
                _send(ranks, engine, folders[str(version)], version)
        finally:
            sent.set()
        answers = [answer for future in asking for answer in future.result(CALL_SECONDS)]
    across = [answer for answer in answers if len(answer[3]) > 1]
    assert across, [answer[3] for answer in answers]
    for prompt, tokens, logprobs, spans in across:
        ends = [*(start for _, start in spans[1:]), len(tokens)]
        for (version, start), end in zip(spans, ends, strict=True):
            wanted = weights.logprobs(folders[version], prompt + tokens)[len(prompt) - 1 :]
            np.testing.assert_allclose(logprobs[start:end], wanted[start:end], rtol=0, atol=TOLERANCE)
