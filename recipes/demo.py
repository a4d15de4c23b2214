"""The main job on a small scale: what `make demo` runs.

python recipes/demo.py
"""

import argparse
import sys
from pathlib import Path

from qedmeg.demo.pipeline import StageFailedError, run_demo
from qedmeg.errors import run_command


def main() -> int:
    """Run the demo in its folder, going on where an earlier call stopped."""
    parser = argparse.ArgumentParser(
        description="A small model from Hugging Face to Megatron-core, fine-tuned on proofs, back, and graded.",
        epilog="example:\n  python recipes/demo.py --folder runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where it works (default: %(default)s)")
    try:
        return run_demo(parser.parse_args().folder)
    except StageFailedError as error:
        print(f"error: the demo stopped; {error}; run it again to go on from there", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_command(main)
