"""Convert a Hugging Face model to a Megatron-core checkpoint, and prove that nothing changed.

The checkpoint loads at any other TP, PP and EP too. Beside it stand report.json, report.md and, when every check has
passed, the file 'complete'."""

import argparse
from pathlib import Path

from qedmeg.conversion import convert, verify
from qedmeg.errors import EXIT_DIFFERS, run_command
from qedmeg.model.families import DTYPES

EPILOG = """\
example:
  python conversion/hf_to_megatron.py --hf models/Qwen3-4B --out checkpoints/Qwen3-4B --tp 2 --pp 2

status: 0 all checks passed; 1 something differs (the result stays OUT.partial, with its report); 2 bad input"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder of the Hugging Face model, in safetensors")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size (default: %(default)s)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size (default: %(default)s)")
    parser.add_argument("--ep", type=int, default=1, help="expert-parallel size (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights to it (default: as they are stored)")
    verify.add_checks_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a complete checkpoint at --out")
    args = parser.parse_args()
    report = convert.hf_to_megatron(
        args.hf,
        args.out,
        tp=args.tp,
        pp=args.pp,
        ep=args.ep,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        checks=args.checks,
        overwrite=args.overwrite,
    )
    print(report.summary())
    return 0 if report.equal else EXIT_DIFFERS


if __name__ == "__main__":
    run_command(main)
