"""Trained tokens a second and peak memory of SFT beside TRL's SFTTrainer: same model, documents, precision, threads.

    python tests/benchmarks/sft_speed.py --rows ../shared/data/deepseek-math-v2

The two take turns, and the matrix-product rate is measured between them, so that a noisy machine disturbs all alike.
TRL has an environment of its own, made from trl/requirements.txt at the first run. Asked are 1.3 times its trained
tokens a second in fp32, 2 times in bf16, and at most 0.7 times its peak memory.

TRL's packed sequences are filled up to --tokens tokens, qedmeg's micro-batches are as long as what they hold; the
longest of each side stand in the result. qedmeg's memory includes that of writing its last checkpoint, TRL writes none.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg.monitor.metrics import read_metrics
from tests.benchmarks.proof_inputs import read_proofs, write_inputs
from tests.benchmarks.side_by_side import HERE, gigaflops, run, spread, trl_python

RESULT = Path(__file__).with_suffix(".json")
SHAPE = {
    "vocabulary": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def run_qedmeg(folder: Path, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of recipes/sft.py."""
    run_dir = folder / f"qedmeg-{number}"
    settings = [
        f"run_dir={run_dir}",
        f"model.hf={folder / 'model'}",
        f"data.train={folder / 'rows.jsonl'}",
        f"data.cache={folder / 'cache'}",
        f"data.max_length={args.tokens}",
        f"data.tokens_per_microbatch={args.tokens}",
        f"data.prompts_per_step={args.documents}",
        f"compute.precision={args.precision}",
        "optimizer.lr=0.0001",
        "optimizer.warmup_steps=0",
        f"max_steps={args.steps}",
        f"checkpoint.save_every={args.steps}",
    ]
    config = folder / "empty.yaml"
    config.write_text("{}\n")
    command = [sys.executable, "recipes/sft.py", "--config", str(config), *settings]
    peak = run(command, args.threads, folder / f"qedmeg-{number}.log").peak_bytes
    steps = [line for line in read_metrics(run_dir) if "train/loss" in line]
    return _rates(
        [line["train/step_time"] for line in steps],
        [line["train/trained_tokens"] for line in steps],
        [line["train/loss"] for line in steps],
        [line["train/microbatch_tokens"] for line in steps],
        peak,
    )


def run_trl(folder: Path, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of TRL: sequences of the same length, as many a step as qedmeg has micro-batches."""
    out = folder / f"trl-{number}.json"
    sizes = [str(args.steps), str(args.tokens), str(args.sequences), args.precision]
    command = [str(trl_python()), str(HERE / "trl" / "train.py"), str(folder / "model"), str(folder / "rows.jsonl")]
    peak = run([*command, str(out), *sizes], args.threads, folder / f"trl-{number}.log").peak_bytes
    found = json.loads(out.read_text())
    return _rates(found["seconds"], found["trained_tokens"], found["losses"], found["lengths"], peak)


def _rates(
    seconds: list[float], trained: list[float], losses: list[float], lengths: list[float], peak: int
) -> dict[str, Any]:
    """Without the first step, in which both set up."""
    return {
        "tokens_per_second": sum(trained[1:]) / sum(seconds[1:]),
        "peak_bytes": peak,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "longest": max(lengths),
    }


def main() -> None:
    """Run both sides in turns, print the comparison, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="folder of DeepSeek-Math-V2's *.jsonl")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=4096, help="of a sequence at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of each run, the first not counted (default: 3)")
    parser.add_argument("--sequences", type=int, default=3, help="TRL's packed sequences a step (default: 3)")
    parser.add_argument("--documents", type=int, default=8, help="qedmeg's documents a step (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    args = parser.parse_args()
    trl_python()
    folder = Path(tempfile.mkdtemp(prefix="sft-speed-"))
    try:
        parameters = write_inputs(folder, read_proofs(args.rows), args.tokens, **SHAPE)
        runs: dict[str, list[dict[str, Any]]] = {"qedmeg": [], "trl": []}
        rates = []
        for number in range(args.repeats):
            for name, side in (("qedmeg", run_qedmeg), ("trl", run_trl)):
                rates.append(gigaflops(args.precision, args.threads))
                runs[name].append(side(folder, number, args))
                print(f"{name} {number}: {runs[name][-1]}", flush=True)
    finally:
        shutil.rmtree(folder)
    _report(args, parameters, runs, rates)


def _report(
    args: argparse.Namespace, parameters: int, runs: dict[str, list[dict[str, Any]]], rates: list[float]
) -> None:
    result: dict[str, Any] = {
        "precision": args.precision,
        "threads": args.threads,
        "tokens_of_a_sequence": args.tokens,
        "parameters": parameters,
        "runs_of_each": args.repeats,
        "steps_of_a_run": args.steps,
        "documents_a_step_of_qedmeg": args.documents,
        "sequences_a_step_of_trl": args.sequences,
        "matrix_gigaflops": {"median": statistics.median(rates), "all": rates},
    }
    for name, found in runs.items():
        speeds = [run["tokens_per_second"] for run in found]
        peak = statistics.median(run["peak_bytes"] for run in found)
        # 6 operations a trained token and parameter, the tied embedding as output layer among them; attention is extra
        share = 6 * parameters * statistics.median(speeds) / (statistics.median(rates) * 1e9)
        result[name] = {
            "tokens_per_second": spread(speeds),
            "peak_gb": peak / 1e9,
            "longest_microbatch": max(run["longest"] for run in found),
            "share_of_matrix_rate": share,
            "losses": [found[0]["first_loss"], found[0]["last_loss"]],
        }
    one, other = result["qedmeg"], result["trl"]
    result["speed_ratio"] = one["tokens_per_second"]["median"] / other["tokens_per_second"]["median"]
    result["memory_ratio"] = one["peak_gb"] / other["peak_gb"]
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(kept | {args.precision: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
