"""The model that is trained, as scaffolds ask it, over a fleet that answers by a script."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.reasoning.call import Call, Message, ModelFailedError, Reply
from qedmeg.reasoning.session import PROVER
from qedmeg.rollout.fleet import Request
from qedmeg.rollout.fleet_model import HALF_A_CHARACTER, FleetModel
from qedmeg.rollout.sample import Sample, Sampling
from tests.data.conftest import PLAIN, save_byte_level

T = TypeVar("T")
MAX_LENGTH, MAX_TOKENS = 80, 40
OPENED = PLAIN.replace("assistant\\n", "assistant\\n<think>\\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_level(folder, PLAIN)
    return load_tokenizer(folder)


class OneFleet:
    """Answers what `answer` says of a prompt's text, as far as the request's limit goes, and counts calls."""

    def __init__(
        self, tokenizer: Tokenizer, answer: Callable[[str], str], *, in_batches: bool, version: int = 3
    ) -> None:
        self.tokenizer, self.answer, self.one_batch_at_a_time, self.version = tokenizer, answer, in_batches, version
        self.batches: list[list[int]] = []
        """Seeds of each call of `generate`."""
        self.busy = 0

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        self.batches.append([request.seed for request in requests])
        self.busy += 1
        assert self.busy == 1 or not self.one_batch_at_a_time
        try:
            for index in reversed(range(len(requests))):
                request = requests[index]
                await asyncio.sleep(0.002)
                assert request.ahead
                text = self.answer(self.tokenizer.decode(request.prompt_P.tolist()))
                whole = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
                tokens = whole[: request.limit(sampling)]
                yield (
                    index,
                    Sample(
                        request.prompt_P,
                        np.array(tokens, dtype=np.int32),
                        np.zeros(len(tokens), dtype=np.float32),
                        ((self.version, 0),),
                        "stop" if len(tokens) == len(whole) else "length",
                    ),
                )
        finally:
            self.busy -= 1


def call(text: str, seed: int = 0, max_tokens: int | None = None) -> Call:
    return Call(f"prove {seed}", PROVER, (Message("user", text),), max_tokens, seed)


def model_of(fleet: Any, tokenizer: Tokenizer) -> FleetModel:
    sampling = Sampling(1.0, MAX_TOKENS, tuple(tokenizer.stop_ids), 0)
    return FleetModel("m", fleet, tokenizer, sampling, MAX_LENGTH, version=3)


def run(work: Coroutine[Any, Any, T]) -> T:
    async def within() -> T:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(within())


def asked(fleet: Any, tokenizer: Tokenizer, *calls: Call) -> list[Reply]:
    async def ask() -> list[Reply]:
        model = model_of(fleet, tokenizer)
        replies = await asyncio.gather(*(model.ask(one, log=None) for one in calls))  # type: ignore[arg-type]
        assert (model.replies, model.under_way) == (len(calls), 0)
        return replies

    return run(ask())


def test_calls_that_come_together_are_one_batch_where_the_fleet_takes_one_at_a_time(tokenizer: Tokenizer) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: f"It is: {re.findall('Step . of .[.]', prompt)[0]}", in_batches=True)

    async def scene() -> None:
        model = model_of(fleet, tokenizer)

        async def chain(number: int) -> None:
            for turn in range(3):
                text = f"Step {turn} of {number}."
                reply = await model.ask(call(text, 10 * number + turn), log=None)  # type: ignore[arg-type]
                assert reply.text == f"It is: {text}"

        await asyncio.gather(*(chain(number) for number in range(6)))

    run(scene())
    assert len(fleet.batches[0]) == 6
    asked_for = sorted(seed for batch in fleet.batches for seed in batch)
    assert asked_for == [10 * number + turn for number in range(6) for turn in range(3)]
    assert len(fleet.batches) < 9  # and not 18


def test_a_fleet_of_servers_is_asked_at_once(tokenizer: Tokenizer) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: "so.", in_batches=False)
    replies = asked(fleet, tokenizer, *(call("Show it.", seed) for seed in range(5)))
    assert fleet.batches == [[0], [1], [2], [3], [4]]
    assert {reply.text for reply in replies} == {"so."}


def test_a_reply_is_what_was_generated(tokenizer: Tokenizer) -> None:
    parts = ["<think>hm</think>", " It", " is even."]
    until = [len(tokenizer.encode("".join(parts[:count]))) for count in range(4)]
    fleet = OneFleet(tokenizer, lambda prompt: "".join(parts), in_batches=True)
    (reply,) = asked(fleet, tokenizer, call("Show it."))
    assert (reply.text, reply.thinking, reply.finish_reason) == ("It is even.", "hm", "stop")
    assert reply.tokens == reply.cost.completion_tokens == until[3] + 1
    assert reply.cost.requests == 1
    (cut,) = asked(fleet, tokenizer, call("Show it.", max_tokens=until[2]))
    assert (cut.text, cut.thinking, cut.finish_reason, cut.tokens) == ("It", "hm", "length", until[2])
    begun = len(tokenizer.encode("<think>hm"))
    (thought,) = asked(fleet, tokenizer, call("Show it.", max_tokens=begun))
    assert (thought.text, thought.thinking) == ("", "hm")


def test_half_a_character_at_the_end_of_a_cut_reply_is_none(tokenizer: Tokenizer) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: "a\N{ROCKET}b", in_batches=False)
    half = len(tokenizer.encode("a")) + 2
    assert tokenizer.decode(tokenizer.encode("a\N{ROCKET}b")[:half]).endswith(HALF_A_CHARACTER)
    (reply,) = asked(fleet, tokenizer, call("Show it.", max_tokens=half))
    assert (reply.text, reply.tokens) == ("a", half)


def test_what_a_prompt_that_opens_a_thought_leads_to_is_thinking_until_it_ends_it(tmp_path: Path) -> None:
    save_byte_level(tmp_path, OPENED)
    tokenizer = load_tokenizer(tmp_path)
    fleet = OneFleet(tokenizer, lambda prompt: "hm, hm</think>so.", in_batches=False)
    begun = len(tokenizer.encode("hm"))
    whole, cut = asked(fleet, tokenizer, call("p"), call("p", max_tokens=begun))
    assert (whole.thinking, whole.text) == ("hm, hm", "so.")
    assert (cut.thinking, cut.text) == ("hm", "")


def test_a_reply_has_the_room_that_its_prompt_leaves(tokenizer: Tokenizer) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: "1 2 3 4 5 6 7 8 9 " * 20, in_batches=True)
    found = {}
    for size in (1, 30):
        (reply,) = asked(fleet, tokenizer, call("7 " * size))
        found[reply.cost.prompt_tokens] = reply.tokens
    assert found == {prompt: min(MAX_TOKENS, MAX_LENGTH - prompt) for prompt in found}
    assert sorted(count == MAX_TOKENS for count in found.values()) == [False, True]
    with pytest.raises(ModelFailedError, match=rf"a prompt of \d+ tokens, and room for {MAX_LENGTH}") as failed:
        asked(fleet, tokenizer, call("7 " * 90))
    assert failed.value.kind == "no room"


def test_a_message_that_spells_a_control_token_is_refused(tokenizer: Tokenizer) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: "so.", in_batches=True)
    special = min(tokenizer.special_texts)
    with pytest.raises(ModelFailedError, match="holds the control token") as failed:
        asked(fleet, tokenizer, call(f"a {special} b"))
    assert failed.value.kind == "refused"
    assert fleet.batches == []


@pytest.mark.parametrize("in_batches", [True, False])
def test_other_weights_and_broken_engines_end_it(tokenizer: Tokenizer, in_batches: bool) -> None:
    def broken(prompt: str) -> str:
        raise OSError("it is gone")

    with pytest.raises(RuntimeError, match="weights changed within version 3"):
        asked(OneFleet(tokenizer, lambda prompt: "so.", in_batches=in_batches, version=4), tokenizer, call("p"))
    with pytest.raises(OSError, match="it is gone"):
        asked(OneFleet(tokenizer, broken, in_batches=in_batches), tokenizer, call("p", 1), call("p", 2))


@pytest.mark.parametrize("in_batches", [True, False])
def test_what_is_given_up_leaves_the_engines(tokenizer: Tokenizer, in_batches: bool) -> None:
    fleet = OneFleet(tokenizer, lambda prompt: "so.", in_batches=in_batches)

    async def scene() -> None:
        model = model_of(fleet, tokenizer)
        asking = [asyncio.create_task(model.ask(call("p", seed), log=None)) for seed in range(40)]  # type: ignore[arg-type]
        while not fleet.busy:
            await asyncio.sleep(0.001)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await model.close()
        assert fleet.busy == 0
        assert model.under_way == 0

    run(scene())
