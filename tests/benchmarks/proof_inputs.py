"""Real proofs for benchmarks: DeepSeek-Math-V2's, a tokenizer trained on them, a model of random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from qedmeg.demo.base_model import train_tokenizer


def read_proofs(folder: Path) -> list[dict[str, Any]]:
    """Problems and the proofs that DeepSeek-Math-V2 wrote of them, as messages."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            answer = row["model_prediction"]["proof"]
            messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
            rows.append({"messages": messages})
    return rows


def write_inputs(folder: Path, proofs: list[dict[str, Any]], longest: int, vocabulary: int, **shape: int) -> int:
    """A tokenizer of the proofs, a Qwen3 of this shape with random weights, and the rows of at most `longest` tokens;
    the number of its parameters."""
    texts = (message["content"] for row in proofs for message in row["messages"])
    tokenizer = train_tokenizer(texts, vocabulary)
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in proofs]
    fitting = [row for row, length in zip(proofs, lengths, strict=True) if length <= longest]
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in fitting)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=longest,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
            **shape,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return sum(parameter.numel() for parameter in model.parameters())
