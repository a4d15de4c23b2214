"""The model folders of judges that are to be served, looked at before anything is begun."""

from qedmeg.config import GraderConfig
from qedmeg.errors import UserError
from qedmeg.model.families import read_config


def check_judges(config: GraderConfig) -> None:
    """Raises UserError where a judge's folder holds no model, or its context no prompt beside max_tokens."""
    for judge in config.judges:
        if judge.serve is None:
            continue
        folder, found = judge.serve.folder, read_config(judge.serve.folder)
        context = judge.serve.max_length or found.get("max_position_embeddings")
        if judge.max_tokens is not None and context is not None and judge.max_tokens >= context:
            raise UserError(
                f"judge {folder}: max_tokens {judge.max_tokens} leaves no room for a prompt in a context of {context} "
                "tokens; lower it, or set it to null for all that the prompt leaves"
            )
