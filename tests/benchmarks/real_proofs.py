"""SFT of a small model on the real proofs of DeepSeek-Math-V2 at 4,096 tokens, TP 2 × PP 2, and its export.

    python tests/benchmarks/real_proofs.py --rows ../shared/data/deepseek-math-v2

It passes when the training loss falls to at most three quarters of its start, and the exported model's logprobs are
equal in transformers, in Megatron-core and in vLLM (1e-4).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from qedmeg.monitor.metrics import read_metrics  # noqa: E402
from tests.benchmarks.proof_inputs import read_proofs, write_inputs  # noqa: E402

LENGTH = 4096
RESULT = Path(__file__).with_suffix(".json")
SHAPE = {"vocabulary": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 32}
RANKS = 4
FALL = 0.75


def main() -> int:
    """Train, export, verify, and keep what was found; status 1 where it does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="folder of DeepSeek-Math-V2's *.jsonl")
    parser.add_argument("--steps", type=int, default=22, help="optimizer steps of 4 documents (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="real-proofs-") as name:
        folder = Path(name)
        parameters = write_inputs(folder, read_proofs(args.rows), LENGTH, **SHAPE)
        _train(folder, args.steps)
        steps = [line for line in read_metrics(folder / "run") if "train/loss" in line]
        checkpoint = folder / "run" / "checkpoints" / f"step_{args.steps:08d}"
        _run("conversion/megatron_to_hf.py", "--megatron", checkpoint, "--out", folder / "exported")
        _run("conversion/verify.py", "--hf", folder / "exported", "--megatron", checkpoint)
        report = json.loads((checkpoint / "verify.json").read_text())
    first, last = steps[0]["train/loss"], statistics.mean(line["train/loss"] for line in steps[-5:])
    found = {check["name"]: check for check in report["checks"]}
    result = {
        "passed": last <= FALL * first and all(check["status"] == "equal" for check in found.values()),
        "parameters": parameters,
        "tokens_per_microbatch": LENGTH,
        "documents_a_step": 4,
        "parallel": {"tp": 2, "pp": 2},
        "losses": [round(line["train/loss"], 4) for line in steps],
        "checks": {name: check["detail"] for name, check in found.items()},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"loss {first:.3f}, after {len(steps)} steps {last:.3f}; {'passed' if result['passed'] else 'FAILED'}")
    return 0 if result["passed"] else 1


def _train(folder: Path, steps: int) -> None:
    config = folder / "sft.yaml"
    config.write_text("{}\n")
    settings = [
        f"run_dir={folder / 'run'}",
        f"model.hf={folder / 'model'}",
        f"data.train={folder / 'rows.jsonl'}",
        f"data.cache={folder / 'cache'}",
        f"data.max_length={LENGTH}",
        f"data.tokens_per_microbatch={LENGTH}",
        "data.prompts_per_step=4",
        "compute.precision=fp32",
        "parallel.tp=2",
        "parallel.pp=2",
        "optimizer.lr=0.002",
        "optimizer.schedule=wsd",
        "optimizer.warmup_steps=5",
        f"max_steps={steps}",
        f"checkpoint.save_every={steps}",
    ]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", RANKS)
    _run(*launcher, "recipes/sft.py", "--config", config, *settings)


def _run(*arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
