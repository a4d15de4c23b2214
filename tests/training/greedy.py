"""Whether greedy attempts of a validation are those of transformers with the exported weights."""

from contextlib import closing
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from qedmeg.data.chat import Conversation, tokenise_prompts
from qedmeg.data.tokenizer import load_tokenizer
from qedmeg.evaluation.results import Results
from qedmeg.rollout.fleet_model import HALF_A_CHARACTER
from qedmeg.rollout.grading import without_control_tokens


def check_greedy(model_folder: Path, results: Path, run: str, max_tokens: int) -> int:
    """Assert it of each attempt of a run; how many there were."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(model_folder)
    with closing(Results(results)) as found:
        problems = {one.id: one.question for one in found.problems(run)}
        attempts = found.attempts(run)
    for one in attempts:
        asked = Conversation(({"role": "user", "content": problems[one.problem]},), one.problem)
        prompt = torch.from_numpy(tokenise_prompts(tokenizer, [asked])[0]).long()[None]
        tokens = model.generate(
            prompt, do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(tokenizer.stop_ids), pad_token_id=0
        )[0, prompt.shape[1] :].tolist()
        text = without_control_tokens(tokenizer, tokenizer.decode(tokens)).rstrip(HALF_A_CHARACTER).strip()
        assert (one.text, one.tokens) == (text, len(tokens))
    return len(attempts)
