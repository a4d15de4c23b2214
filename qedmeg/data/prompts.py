"""The problems that proofs are generated of, each with the tokens that a model is asked with."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qedmeg.config_rl import ProblemConfig
from qedmeg.data.chat import Conversation, check_template, control_token, opens_thought, tokenise_prompts
from qedmeg.data.problem_rows import read_problem
from qedmeg.data.problems import Problem
from qedmeg.data.sources import open_sources
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem


@dataclass(frozen=True, eq=False)
class Prompt:
    """A problem and the P tokens (int32) that a model is given to prove it, the generation prompt at their end."""

    problem: Problem | ProofProblem
    tokens_P: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PromptSet:
    """All prompts of a data set, in the order of its rows."""

    prompts: tuple[Prompt, ...]
    fingerprint: str
    """Hash of all problems and tokens, in order: the same wherever the rows lie."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)


def load_prompts(
    config: ProblemConfig, tokenizer: Tokenizer, limit: int, microbatch_limit: int | None = None
) -> PromptSet:
    """Read, check and tokenise the problems of `config`. `limit`: the tokens that the model's context leaves for a
    prompt beside `rollout.max_tokens` of answer; `microbatch_limit`: those that a micro-batch leaves, where the prompts
    are trained on.

    Raises UserError naming source, row and column of what is missing, empty, damaged or too long, and the remedy.
    """
    check_template(tokenizer, "prefix")
    control = control_token(tokenizer, config.prompt)
    if control:
        raise UserError(f"data.prompt: {config.prompt!r} holds the control token {control!r} as text; remove it")
    problems: list[Problem | ProofProblem] = []
    conversations: list[Conversation] = []
    for problem, where in read_problems(config):
        message = {"role": "user", "content": config.prompt.format(problem=problem.statement)}
        problems.append(problem)
        conversations.append(Conversation((message,), where))
    if not problems:
        raise UserError(f"{config.train}: no rows: data.train must hold at least one problem")
    _refuse_different_problems_of_one_id(problems, conversations)

    prompts_P = tokenise_prompts(tokenizer, conversations)
    _refuse_long_prompts(prompts_P, conversations, limit, "the model's context", "lower rollout.max_tokens")
    if microbatch_limit is not None:
        setting = "data.tokens_per_microbatch"
        remedy = f"raise {setting} or lower rollout.max_tokens"
        _refuse_long_prompts(prompts_P, conversations, microbatch_limit, setting, remedy)
    if not config.thinking and opens_thought(tokenizer):
        raise UserError(
            f"{tokenizer.name}: the chat template's generation prompt ends with <think>, and what is thought would "
            "be graded as proof; set data.thinking=true, or give another template with data.chat_template"
        )
    prompts = tuple(Prompt(problem, tokens_P) for problem, tokens_P in zip(problems, prompts_P, strict=True))
    return PromptSet(prompts, _fingerprint(prompts))


def read_problems(config: ProblemConfig) -> Iterator[tuple[Problem | ProofProblem, str]]:
    """The problem in each row, and where its statement stands. Raises UserError as `load_prompts` does for a row."""
    for source in open_sources(
        config.train, split=config.split, hub_config=config.hub_config, revision=config.revision
    ):
        for row in source.rows():
            yield read_problem(row, config.columns, source.name)


def _refuse_different_problems_of_one_id(
    problems: Sequence[Problem | ProofProblem], conversations: Sequence[Conversation]
) -> None:
    first: dict[str, int] = {}
    for index, problem in enumerate(problems):
        before = first.setdefault(problem.id, index)
        if problem != problems[before]:
            differs = next(
                (
                    field
                    for field in ("statement", "rubric", "reference")
                    if getattr(problem, field, None) != getattr(problems[before], field, None)
                ),
                "kind",
            )
            raise UserError(
                f"{conversations[index].where}: id '{problem.id}' is that of {conversations[before].where} too, whose "
                f"{differs} is another; give each problem an id of its own, or name their column with data.columns.id"
            )


def _refuse_long_prompts(
    prompts_P: Sequence[npt.NDArray[np.int32]],
    conversations: Sequence[Conversation],
    limit: int,
    limited_by: str,
    remedy: str,
) -> None:
    lengths = [len(tokens_P) for tokens_P in prompts_P]
    too_long = [index for index, length in enumerate(lengths) if length > limit]
    if too_long:
        first, longest = too_long[0], max(lengths)
        raise UserError(
            f"{conversations[first].where}: the prompt has {lengths[first]} tokens, but {limited_by} leaves "
            f"{max(limit, 0)} beside rollout.max_tokens ({len(too_long)} of {len(lengths)} prompts are too long, the "
            f"longest has {longest}); {remedy} by at least {longest - limit}, or remove these rows"
        )


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        text = repr(prompt.problem).encode()
        digest.update(f"{len(text)} {len(prompt.tokens_P)} ".encode() + text + prompt.tokens_P.astype("<i4").tobytes())
    return digest.hexdigest()
