"""What PPO and REINFORCE add to the demo's fine-tuned model: scores on held-out problems before and after.

    python tests/benchmarks/held_out_gains.py --model runs/demo/sft

Each trains with its demo settings (recipes/configs/ppo_demo.yaml, reinforce_demo.yaml), is converted back and writes
proofs of the held-out problems as the demo does. Asked are a higher sampled score of each, and a critic whose explained
variance rises. It takes about 20 minutes on two cores.
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

from qedmeg.demo.stages import HELD_OUT, SAMPLES
from tests.benchmarks.grpo_runs import train, write_problems
from tests.benchmarks.side_by_side import ROOT, run

RESULT = Path(__file__).with_suffix(".json")
ALGORITHMS = ("ppo", "reinforce")
THREADS = 2


def score(model: Path, folder: Path) -> dict[str, Any]:
    """Points of 7, means over the held-out problems: sampled and greedy."""
    report = folder / f"{model.name}.scores"
    asked = ["--benchmark", "embedded", "--problems", HELD_OUT, "--set", 'scaffold.prompt="{problem}"']
    options = ["--samples", SAMPLES, "--greedy", "--name", model.name, "--report", report]
    command = ["eval/all.py", "--model", model.absolute(), "--out", folder / "results.sqlite", *asked, *options]
    run([sys.executable, *map(str, command)], THREADS, report.with_suffix(".log"))
    sampled, greedy = json.loads((report / "stats.json").read_text())
    whole = sampled["whole"]
    found = {"score": whole["mean"], "greedy": greedy["whole"]["mean"]}
    return found | {"problems": whole["problems"], "samples": sampled["samples"]}


def improve(algorithm: str, model: Path, steps: int | None, folder: Path) -> dict[str, Any]:
    """Train, convert and score; what its critic explains, where it has one."""
    settings = [f"model.hf={model.absolute()}", f"data.train={folder / 'problems.jsonl'}"]
    settings += [] if steps is None else [f"max_steps={steps}"]
    config = ROOT / "recipes" / "configs" / f"{algorithm}_demo.yaml"
    done = train(folder, algorithm, settings, config, recipe="recipes/ppo.py")
    trained = max((folder / algorithm / "checkpoints").glob("step_????????"))
    command = ["conversion/megatron_to_hf.py", "--megatron", trained, "--out", folder / f"{algorithm}-hf"]
    command += ["--checks", "tensors,config,tokenizer"]
    run([sys.executable, *map(str, command)], 1, folder / f"{algorithm}-convert.log")
    result = score(folder / f"{algorithm}-hf", folder)
    result |= {"steps": len(done.metrics), "seconds": done.run.seconds, "rewards": done.of("reward")}
    name = "train/explained_variance"
    if any(name in line for line in done.metrics):
        result["explained_variance"] = [line[name] for line in done.metrics if name in line]
    return result


def main() -> int:
    """Run, print and keep; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/sft"), help="folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of each run (default: as configured)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="held-out-gains-"))
    try:
        write_problems(folder / "problems.jsonl")
        result: dict[str, Any] = {"before": score(args.model, folder)}
        print(f"before: {result['before']}", flush=True)
        for algorithm in ALGORITHMS:
            result[algorithm] = improve(algorithm, args.model, args.steps, folder)
            shown = {name: value for name, value in result[algorithm].items() if not isinstance(value, list)}
            print(f"{algorithm}: {shown}", flush=True)
    finally:
        shutil.rmtree(folder)
    explained = result["ppo"]["explained_variance"]
    quarter = max(1, len(explained) // 4)
    first, last = statistics.fmean(explained[:quarter]), statistics.fmean(explained[-quarter:])
    result["explained_variance"] = {"first quarter": first, "last quarter": last}
    print(f"the critic explains {first:.2f} of the variance in the first quarter of the steps, {last:.2f} in the last")
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    rises = all(result[name]["score"] > result["before"]["score"] for name in ALGORITHMS)
    return 0 if rises and last > first else 1


if __name__ == "__main__":
    sys.exit(main())
