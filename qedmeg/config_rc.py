"""What can be set of reinforcement learning with the reasoning cache."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qedmeg.config import EndpointConfig
from qedmeg.config_rl import GRPOConfig
from qedmeg.reasoning.reasoning_cache import CachePrompts
from qedmeg.settings import Settings


class CacheConfig(Settings):
    """Chains of reasoning and summaries, and which of their states are trained on."""

    rounds: int = Field(default=3, ge=1)
    """Rounds of a chain, T: each reasons and summarises. It has T + 1 states: what each round begins with, and the
    state after the last summary."""
    keep: Literal["replace", "append"] = "replace"
    """`replace`: a summary takes the place of the one before it. `append`: it stands after those before it."""
    prompts: CachePrompts | None = None
    """Questions in other words than ours. None: ours, which the scaffold `reasoning_cache` asks too."""
    reason_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a round's reasoning in a chain. None: rollout.max_tokens."""
    summary_tokens: int = Field(default=2048, ge=1)
    """Most tokens of a summary, with the thinking before it."""

    states_per_problem: int = Field(default=2, ge=1)
    """Most states of a chain that a step has groups of, k."""
    sampling: Literal["uniform", "latest", "hardest"] = "uniform"
    """Which of a chain's states: any; those of the latest rounds; those whose groups earned least so far, before which
    come those without a graded group."""
    max_age: int = Field(default=4, ge=0)
    """Most weight versions that a state may be older than those that begin its group; one that is older is dropped."""
    chains_per_step: int | None = Field(default=None, ge=1)
    """Chains that are rolled out anew with each weight version. None: prompts_per_step / states_per_problem, rounded
    up. With fewer, older states fill the step, as long as there are any; what lacks then is rolled out too."""

    train: Literal["reasoning", "both"] = "reasoning"
    """`reasoning`: the groups of states. `both`: the summaries too, each of which earns what it improved: the mean
    reward of its state's group less that of the group of the state before."""
    summaries_per_state: int = Field(default=2, ge=1)
    """With `both`: summaries of each round's reasoning, m, which are compared with each other; the chain goes on from
    the first. A step has groups of the state before and of all m states after it: states_per_problem is m + 1."""
    summariser: EndpointConfig | None = None
    """A frozen model that summarises, behind a server that gets no weights. None: the model that is trained. With one,
    the same seed gives the same run only as far as it gives the same summaries."""

    @property
    def siblings(self) -> int:
        """Summaries of each round's reasoning."""
        return self.summaries_per_state if self.train == "both" else 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train == "reasoning" and self.states_per_problem > self.rounds + 1:
            raise ValueError(
                f"states_per_problem {self.states_per_problem} is greater than the {self.rounds + 1} states of "
                f"{self.rounds} rounds; lower it"
            )
        if self.train == "both":
            if self.summaries_per_state == 1:
                raise ValueError(
                    "summaries_per_state 1 leaves a summary none to be compared with; set it to 2 or more, or train to "
                    "reasoning"
                )
            if self.states_per_problem != self.summaries_per_state + 1:
                raise ValueError(
                    f"states_per_problem {self.states_per_problem}: with train both it is summaries_per_state + 1, the "
                    f"state before the summaries and one after each; set it to {self.summaries_per_state + 1}"
                )
            if self.summariser is not None:
                raise ValueError("summariser: a frozen one cannot be trained; set train to reasoning, or leave it out")
            if self.sampling == "hardest":
                raise ValueError(
                    "sampling hardest compares what states have earned, and summaries are trained while their chain is "
                    "new; with train both set it to uniform or latest"
                )
        return self


class RCConfig(GRPOConfig):
    """Reinforcement learning on rubric grades with the reasoning cache."""

    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _fits_the_cache(self) -> Self:
        if self.data.prompt != "{problem}":
            raise ValueError(
                f"data.prompt {self.data.prompt!r}: the cache has prompts of its own; leave it out, set cache.prompts"
            )
        if self.cache.states_per_problem > self.data.prompts_per_step:
            raise ValueError(
                f"cache.states_per_problem {self.cache.states_per_problem} is greater than data.prompts_per_step "
                f"{self.data.prompts_per_step}; raise the latter"
            )
        if self.cache.train == "both" and self.rollout.drop_zero_variance:
            raise ValueError(
                "rollout.drop_zero_variance: groups of equal rewards still tell what a summary brought; with "
                "cache.train both set it to false"
            )
        return self
