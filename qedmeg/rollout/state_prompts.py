"""What a model is asked in a chain of the reasoning cache, as tokens, and what its replies are taken for.

Replies are hostile input: no control token and no mark of a chat template gets from one into a prompt, and no prompt is
longer than there is room for.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qedmeg.chat.message import Message
from qedmeg.config_rc import CacheConfig
from qedmeg.config_rl import ProblemConfig, RolloutConfig
from qedmeg.data.chat import Conversation, control_token, tokenise_prompts
from qedmeg.data.prompts import PromptSet
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.fence import harmless
from qedmeg.reasoning.reasoning_cache import State, next_state, reason_messages, summary_messages
from qedmeg.rollout.grading import without_control_tokens
from qedmeg.thinking import THINK, split_thinking

GROWTH = 4
"""A text may have a quarter more tokens than were generated for it, where the context leaves room for them: those of
another tokenizer, or of what is no proper text."""


class Room(NamedTuple):
    """Most tokens of the prompts, and of a prompt with its reply."""

    state: int
    summary: int
    whole: int


@dataclass(frozen=True)
class StatePrompts:
    """The prompts of a run's chains."""

    tokenizer: Tokenizer
    data: ProblemConfig
    cache: CacheConfig
    room: Room

    def of(self, state: State) -> npt.NDArray[np.int32]:
        """What a round that begins with `state` is asked, in a chain as in a group: P tokens."""
        return self._fitted(state, self.room.state)[1]

    def after(self, state: State, summary: str) -> State:
        """The state that a summary leads to. Where its prompt would be too long, since the text has more tokens than
        were generated for it, the beginning of the summary is left out: the end says where the work stands."""
        return self._fitted(next_state(state, summary, self.cache.keep), self.room.state)[0]

    def summarise(self, state: State, reasoning: str) -> tuple[Message, ...]:
        """What the summariser is asked after a round that began with `state`."""
        return self._summarise(state, reasoning)[0]

    def summarise_tokens(self, state: State, reasoning: str) -> npt.NDArray[np.int32]:
        """The same in P tokens."""
        return self._summarise(state, reasoning)[1]

    def read(self, tokens_T: npt.NDArray[np.int32]) -> tuple[str, str]:
        """The thinking and the text of a reply."""
        content = self.tokenizer.decode(tokens_T.tolist())
        if self.data.thinking and not content.lstrip().startswith(THINK):
            content = THINK + content  # which the prompt ended with
        thinking, text = split_thinking(content)
        return self.cleaned(thinking), self.cleaned(text)

    def cleaned(self, text: str) -> str:
        """The text without control tokens, and without what is left of one that another stood in."""
        text = harmless(without_control_tokens(self.tokenizer, text))
        while found := control_token(self.tokenizer, text):
            text = text.replace(found, "")
        return text.strip()

    def _fitted(self, state: State, limit: int) -> tuple[State, npt.NDArray[np.int32]]:
        while True:
            tokens_P = self._tokens(reason_messages(state, self.cache.prompts))
            if len(tokens_P) <= limit or not state.summary:
                return state, tokens_P
            state = State(state.problem, state.round, self._shorter(state.summary, len(tokens_P) - limit))

    def _summarise(self, state: State, reasoning: str) -> tuple[tuple[Message, ...], npt.NDArray[np.int32]]:
        while True:
            messages = summary_messages(state, reasoning, self.cache.keep, self.cache.prompts)
            tokens_P = self._tokens(messages)
            if len(tokens_P) <= self.room.summary or not reasoning:
                return messages, tokens_P
            reasoning = self._shorter(reasoning, len(tokens_P) - self.room.summary)

    def _shorter(self, text: str, excess: int) -> str:
        """Without its first `excess` tokens, and shorter in any case."""
        rest = self.cleaned(self.tokenizer.decode(self.tokenizer.encode(text)[excess:]))
        return rest if len(rest) < len(text) else text[1 + len(text) // 16 :]

    def _tokens(self, messages: tuple[Message, ...]) -> npt.NDArray[np.int32]:
        plain = tuple({"role": message.role, "content": message.content} for message in messages)
        return tokenise_prompts(self.tokenizer, [Conversation(plain, "a chain of the reasoning cache")])[0]


def make_state_prompts(
    tokenizer: Tokenizer,
    prompts: PromptSet,
    data: ProblemConfig,
    rollout: RolloutConfig,
    cache: CacheConfig,
    context: int,
) -> StatePrompts:
    """The prompts of a run's chains, once it is seen that there is room for them.

    `context` are the model's positions; what is trained on must fit data.tokens_per_microbatch too.

    Raises:
        UserError: there is no room for the longest problem with a whole summary, or with a whole reasoning.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.tokens_P)).problem.statement
    free = StatePrompts(tokenizer, data, cache, Room(0, 0, 0))
    one = State(longest, 2, "x")
    reason_tokens = cache.reason_tokens or rollout.max_tokens
    notes = cache.summary_tokens * (cache.rounds if cache.keep == "append" else 1)
    state = len(free._tokens(reason_messages(one, cache.prompts))) + notes
    summary = len(free._tokens(summary_messages(one, "x", cache.keep, cache.prompts))) + notes + reason_tokens
    trained = min(context, data.tokens_per_microbatch)
    told = f"cache.summary_tokens {cache.summary_tokens}" + (
        f", kept of {cache.rounds} rounds" if cache.keep == "append" else ""
    )
    _require(state + rollout.max_tokens, trained, f"{told}, and rollout.max_tokens {rollout.max_tokens}")
    _require(state + reason_tokens, context, f"{told}, and cache.reason_tokens {reason_tokens}")
    _require(
        summary + cache.summary_tokens,
        trained if cache.train == "both" else context,
        f"{told}, cache.reason_tokens {reason_tokens} to be summarised, and as long a summary of it",
    )
    state = min(
        state + notes // GROWTH,
        trained - rollout.max_tokens,
        context - reason_tokens,
    )
    summary = min(
        summary + (notes + reason_tokens) // GROWTH,
        (trained if cache.train == "both" else context) - cache.summary_tokens,
    )
    whole = max(state + max(reason_tokens, rollout.max_tokens), summary + cache.summary_tokens)
    return StatePrompts(tokenizer, data, cache, Room(state, summary, whole))


def _require(tokens: int, limit: int, what: str) -> None:
    if tokens > limit:
        raise UserError(
            f"{what}: with the longest problem that makes {tokens} tokens, and the model's context, or "
            f"data.tokens_per_microbatch, holds {limit}; lower one of them by {tokens - limit} tokens or more"
        )
