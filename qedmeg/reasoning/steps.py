"""The steps that scaffolds are made of: prove, verify, improve, merge. Each makes the call, none asks it."""

from collections.abc import Sequence
from dataclasses import dataclass

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call, Reply
from qedmeg.reasoning.prompts import make_prompt, read_verdict
from qedmeg.reasoning.questions import Question
from qedmeg.reasoning.session import PROVER

VERIFIER, IMPROVER = "verifier", "improver"
_VERDICTS = {"0": 0.0, "0.5": 0.5, "1": 1.0}


@dataclass(frozen=True)
class Analysis:
    """What a verifier wrote about a proof."""

    text: str
    verdict: float
    """1: complete and correct; 0.5: sound but for details; 0: a wrong or missing step (DeepSeek-Math-V2's scale)."""


def prove(problem: str, path: str, approach: str = "") -> Call:
    """Ask for a proof, along an approach if one is given."""
    return Call(path, PROVER, make_prompt("prove", problem, approach=approach).messages)


def verify(problem: str, proof: str, path: str) -> Question[Analysis]:
    """Ask for an analysis of a proof that ends in a verdict."""
    prompt = make_prompt("verify", problem, proof=proof)

    def read(text: str) -> Analysis:
        verdict = _VERDICTS.get(read_verdict(text, prompt.key))
        if verdict is None:
            raise NoVerdict("its last verdict is none of 0, 0.5 and 1")
        return Analysis(text, verdict)

    return Question(Call(path, VERIFIER, prompt.messages), read)


def improve(problem: str, proof: str, analyses: Sequence[str], path: str) -> Call:
    """Ask for a better version of a proof in the light of analyses; without any, of its author's own second look."""
    prompt = make_prompt("improve", problem, proof=proof, analyses=[text for text in analyses if text.strip()])
    return Call(path, IMPROVER, prompt.messages)


def merge(problem: str, proofs: Sequence[str], path: str) -> Call:
    """Ask for one proof that takes the best of several."""
    return Call(path, PROVER, make_prompt("merge", problem, proofs=proofs).messages)


def written(replies: Sequence[Reply]) -> dict[int, str]:
    """The texts of replies by their number, from 1. A reply that was cut off before its text began has none and is
    left out; one that was cut off later is a proof like any other, for verifiers and selectors to find incomplete."""
    return {number: text for number, reply in enumerate(replies, start=1) if (text := reply.text.strip())}


def replaced(old: str, reply: Reply) -> str:
    """The text of a reply that is to take the place of `old`. One that was cut off does so only where `old` is
    empty: half a proof is no better version of a whole one."""
    text = reply.text.strip()
    return text if text and (reply.finish_reason == "stop" or not old) else old
