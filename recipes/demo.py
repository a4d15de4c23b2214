"""The main job on a small scale: what `make demo` and `make demo-rc` run.

python recipes/demo.py
"""

import argparse
import sys
from pathlib import Path

from qedmeg.demo.pipeline import run_demo
from qedmeg.demo.stages import StageFailedError
from qedmeg.errors import run_command


def main() -> int:
    """Run the demo in its folder, going on where an earlier call stopped."""
    parser = argparse.ArgumentParser(
        description="A small model from Hugging Face to Megatron-core, fine-tuned on proofs, back, and graded.",
        epilog="examples:\n  python recipes/demo.py --folder runs/demo\n  python recipes/demo.py --cache",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where it works (default: %(default)s)")
    parser.add_argument(
        "--cache", action="store_true", help="go on with reinforcement learning with the reasoning cache"
    )
    arguments = parser.parse_args()
    try:
        return run_demo(arguments.folder, with_cache=arguments.cache)
    except StageFailedError as error:
        print(f"error: the demo stopped; {error}; run it again to go on from there", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_command(main)
