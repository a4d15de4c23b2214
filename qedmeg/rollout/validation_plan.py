"""What validations ask, read and checked: by the trainer before a device is touched, and by who answers."""

from qedmeg.config import GraderConfig
from qedmeg.config_rl import RolloutConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.data.chat import Conversation, tokenise_prompts
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.evaluation.plan import Plan, make_plan
from qedmeg.grading.grader import ProofProblem


def read_validation(
    config: ValidationConfig, rollout: RolloutConfig, grader: GraderConfig, tokenizer: Tokenizer, context: int
) -> tuple[Plan, int]:
    """What a run's validations ask, read and checked, and the longest prompt and reply that engines must take for them,
    in tokens. `context` are the model's positions.

    Raises:
        UserError: naming the setting that does not fit, or the problem.
    """
    plan = make_plan(
        config.benchmark,
        config.data,
        problems=config.problems,
        seed=config.seed,
        scaffold=config.scaffold,
        scaffold_settings=config.scaffold_settings,
        budget=config.budget,
        prefix="validation.",
        settings_name="validation.scaffold_settings",
    )
    for one in plan.problems:
        if isinstance(one.problem, ProofProblem) and not grader.judges:
            raise UserError(
                f"grader.judges: none, and validation.benchmark '{config.benchmark}' has proofs that take one, such as "
                f"those of problem '{one.id}'; set a judge, or another benchmark"
            )
    max_tokens = config.max_tokens or rollout.max_tokens
    questions = [
        Conversation(({"role": "user", "content": one.question},), f"problem '{one.id}' of validation.benchmark")
        for one in plan.problems
    ]
    longest = max(map(len, tokenise_prompts(tokenizer, questions))) + max_tokens
    if longest > context:
        raise UserError(
            f"validation.max_tokens: {max_tokens}: with the longest problem that makes {longest} tokens, and the "
            f"model's context has {context}; lower it by {longest - context} or more"
        )
    if config.max_length is not None and not longest <= config.max_length <= context:
        raise UserError(
            f"validation.max_length: {config.max_length} is not between the {longest} tokens of the longest problem "
            f"with max_tokens, and the model's context of {context}"
        )
    return plan, config.max_length or longest
