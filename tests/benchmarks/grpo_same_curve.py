"""The same seed, the same curve: GRPO of the demo's model twice, with one engine and with two, at max_lag 0.

    python tests/benchmarks/grpo_same_curve.py --model runs/demo/sft

Rewards of all steps must be equal to the last bit, and so must the losses and gradient norms. It takes about four
minutes on two cores.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.grpo_runs import train, write_problems

RESULT = Path(__file__).with_suffix(".json")
NUMBERS = ("reward", "loss", "grad_norm", "response_tokens")


def main() -> int:
    """Run twice, compare, keep; status 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/sft"), help="folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of each run (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="grpo-same-curve-"))
    try:
        write_problems(folder / "problems.jsonl")
        shared = [f"model.hf={args.model.absolute()}", f"data.train={folder / 'problems.jsonl'}"]
        shared += [f"max_steps={args.steps}", f"checkpoint.save_every={args.steps}"]
        runs = [train(folder, f"engines-{engines}", [*shared, f"rollout.engines={engines}"]) for engines in (1, 2)]
    finally:
        shutil.rmtree(folder)
    greatest = {
        name: max(abs(one - other) for one, other in zip(runs[0].of(name), runs[1].of(name), strict=True))
        for name in NUMBERS
    }
    print("\n".join(f"{name}: greatest difference of {args.steps} steps {value:g}" for name, value in greatest.items()))
    RESULT.write_text(json.dumps({"steps": args.steps, "greatest_difference": greatest}, indent=1) + "\n")
    return 1 if any(greatest.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
