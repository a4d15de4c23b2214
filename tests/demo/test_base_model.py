"""The demo's tokenizer."""

from qedmeg.data.problems import generate, reference_proof
from qedmeg.demo import base_model


def test_tokenizer_keeps_digits_apart_and_text_whole():
    problems = generate("train", 90, seed=0)
    tokenizer = base_model.train_tokenizer(f"{p.statement} {reference_proof(p)}" for p in problems)
    for problem in problems[:20]:
        text = f"{problem.statement} {reference_proof(problem)}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        for token in ids:
            assert sum(character.isdigit() for character in tokenizer.decode([token])) <= 1
    assert len(tokenizer) <= base_model.VOCABULARY


def test_chat_template_marks_the_proof_and_its_end():
    tokenizer = base_model.train_tokenizer(["prove this . by that ."])
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": "prove this ."}, {"role": "assistant", "content": "by that ."}],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "by that .<|im_end|>"
