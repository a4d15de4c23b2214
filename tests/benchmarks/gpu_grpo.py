"""Where the time of a GRPO step goes on one GPU that trainer and vLLM share, for a model of Qwen3-0.6B's shape.

    python tests/benchmarks/gpu_grpo.py

recipes/grpo.py trains random weights in bf16 on groups of 8 answers of 512 new tokens, graded by a judge that answers
at once. The first step is not counted. Weights go to the engine over the host's memory, since NCCL refuses two ranks on
one GPU; the floor of that is to copy the same bytes to pinned memory and back, which is measured when the run is over.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import Qwen3Config, Qwen3ForCausalLM

from qedmeg.monitor.metrics import read_metrics
from tests import grpo_runs
from tests.data.conftest import MARKED, save_byte_level
from tests.grading.judge_server import JudgeServer

RESULT = Path(__file__).with_suffix(".json")
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
SMALL = SHAPE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
PARTS = ("generate", "grade", "logprobs", "train", "transfer")
COPIES = 5


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """A model with random weights, and a tokenizer that has a text for each of its tokens; its number of weights."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**shape, dtype="bfloat16")).to(torch.bfloat16)
    model.save_pretrained(folder)
    save_byte_level(folder, MARKED)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"x{number}": number for number in range(len(words), shape["vocab_size"])}
    path.write_text(json.dumps(tokenizer))
    return sum(parameter.numel() for parameter in model.parameters())


def write_config(folder: Path, judge_url: str, arguments: argparse.Namespace) -> Path:
    """The settings of the run."""
    tokens = 32 if arguments.small else 512
    rubric = [{"name": "case", "points": 3, "description": "n even"}, {"name": "end", "points": 4, "description": "so"}]
    rows = [{"id": f"p{i}", "problem": f"Prove that n^2 + {i} is n.", "rubric": rubric} for i in range(64)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "run_dir": str(folder / "run"),
        "model": {"hf": str(folder / "model")},
        "data": {
            "train": str(folder / "problems.jsonl"),
            "prompts_per_step": 2 if arguments.small else 8,
            "rollouts_per_prompt": 8,
            "tokens_per_microbatch": 512 if arguments.small else 16384,
        },
        "rollout": {"max_tokens": tokens, "kv_cache_gib": 0.125 if arguments.small else 8.0, "start": arguments.start},
        "grader": {"judges": [{"base_url": judge_url, "model": "judge"}]},
        "compute": {"precision": "bf16"},
        "optimizer": {"lr": 1e-6, "schedule": "constant"},
        "checkpoint": {"save_every": 1000},
        "minibatches": 2,  # so that the trainer's own log-probabilities are computed too
        "max_steps": arguments.steps + 1,
    }
    path = folder / "grpo.yaml"
    path.write_text(json.dumps(settings))  # which is YAML too
    return path


def copy_seconds(size: int) -> dict[str, float]:
    """Medians of copying so many bytes from the GPU to pinned memory and back in pieces of 64 MiB, and on the GPU."""
    piece = 64 << 20
    there, other = (torch.zeros(min(size, piece), dtype=torch.uint8, device="cuda") for _ in range(2))
    pinned = torch.zeros(len(there), dtype=torch.uint8, pin_memory=True)
    ways = {"to host": (pinned, there), "to GPU": (there, pinned), "on GPU": (other, there)}
    found = {}
    for name, (target, source) in ways.items():
        taken = []
        for _ in range(COPIES + 1):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(-(-size // piece)):
                target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        found[name] = statistics.median(taken[1:])
    return found


def summarise(steps: list[dict[str, float]], weights: int, wall: float) -> dict[str, Any]:
    """Medians over the counted steps."""
    counted = steps[1:]

    def median(name: str) -> float:
        return statistics.median(line[f"train/{name}"] for line in counted)

    tokens = [line["train/rollouts"] * line["train/response_tokens"] for line in counted]
    generated = [new / line["train/time/generate"] for new, line in zip(tokens, counted, strict=True)]
    trained = [line["train/tokens"] / line["train/time/train"] for line in counted]
    return {
        "weights": weights,
        "steps": len(counted),
        "rollouts": counted[0]["train/rollouts"],
        "response_tokens": median("response_tokens"),
        "step_seconds": median("step_time"),
        "seconds": {name: median(f"time/{name}") for name in PARTS},
        "generated_tokens_per_second": statistics.median(generated),
        "trained_tokens_per_second": statistics.median(trained),
        "transfer_bytes": counted[0]["train/transfer_bytes"],
        "mismatch": median("mismatch"),
        "mismatch_max": max(line["train/mismatch_max"] for line in steps),
        "first_step_seconds": steps[0]["train/step_time"],
        "run_seconds": wall,
        "torch": torch.__version__,
    }


def main() -> int:
    """Measure, print, and write the JSON file beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/benchmarks/gpu_grpo.py --steps 6",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=5, help="counted ones (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="vLLM servers instead of an engine of the run's own")
    parser.add_argument("--small", action="store_true", help="a tiny model and few tokens: to see that it works")
    parser.add_argument("--out", type=Path, default=RESULT, help="(default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-grpo-") as scratch, JudgeServer() as judge:
        folder = Path(scratch)
        weights = write_model(folder / "model", SMALL if arguments.small else SHAPE)
        torch.cuda.empty_cache()
        config = write_config(folder, judge.url, arguments)
        started = time.monotonic()
        status, output = grpo_runs.finish(grpo_runs.start(config))
        wall = time.monotonic() - started
        if status:
            log = folder / "run" / "logs" / "rollout_process.log"
            print(output[-4000:], log.read_text()[-6000:] if log.exists() else "", sep="\n")
            return 1
        steps = [line for line in read_metrics(folder / "run") if "train/reward" in line]
    result = summarise(steps, weights, wall)
    if torch.cuda.is_available():
        result |= {"copy_seconds": copy_seconds(int(result["transfer_bytes"])), "gpu": torch.cuda.get_device_name()}
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
