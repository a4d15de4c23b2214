"""TRL's side of sft_speed.py: its SFTTrainer, packing as it recommends, in an environment of its own.

python tests/benchmarks/trl/train.py MODEL ROWS OUT STEPS TOKENS SEQUENCES PRECISION
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from step_clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main(model: str, rows: str, out: str, steps: str, tokens: str, accumulated: str, precision: str) -> None:
    """Train, and write seconds, losses and trained tokens of each step to OUT."""
    bf16 = precision == "bf16"
    tokenizer = AutoTokenizer.from_pretrained(model)
    clock, trained, lengths = Clock(), [], []
    trainer = SFTTrainer(
        # fp32 weights on both sides: in bf16 TRL computes under autocast, qedmeg on a bf16 copy
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        callbacks=[clock],
        args=SFTConfig(
            output_dir=str(Path(out).with_suffix("")),
            max_steps=int(steps),
            max_length=int(tokens),
            packing=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=int(accumulated),
            gradient_checkpointing=False,  # neither side recomputes
            assistant_only_loss=True,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            bf16=bf16,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
    )
    compute_loss = trainer.compute_loss

    def counted(model: torch.nn.Module, inputs: dict[str, torch.Tensor], *rest: object, **more: object) -> object:
        trained.append(int((inputs["labels"] != -100).sum()))
        lengths.append(inputs["input_ids"].numel())
        return compute_loss(model, inputs, *rest, **more)

    trainer.compute_loss = counted
    trainer.train()
    per_step = int(accumulated)
    result = {
        "seconds": [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)],
        "trained_tokens": [sum(trained[i : i + per_step]) for i in range(0, len(trained), per_step)],
        "lengths": lengths,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
