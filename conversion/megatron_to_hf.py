"""Convert a Megatron-core checkpoint, of conversion/hf_to_megatron.py or of training, to a Hugging Face model.

Beside the model stand report.json, report.md and, when every check has passed, the file 'complete'."""

import argparse
from pathlib import Path

from qedmeg.conversion import convert, verify
from qedmeg.errors import EXIT_DIFFERS, run_command

EPILOG = """\
example:
  python conversion/megatron_to_hf.py --megatron runs/sft/checkpoints/step_00000200 --out models/Qwen3-4B-proofs

status: 0 all checks passed; 1 something differs (the result stays OUT.partial, with its report); 2 bad input"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megatron", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the Hugging Face model to")
    verify.add_checks_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a complete model at --out")
    args = parser.parse_args()
    report = convert.megatron_to_hf(args.megatron, args.out, checks=args.checks, overwrite=args.overwrite)
    print(report.summary())
    return 0 if report.equal else EXIT_DIFFERS


if __name__ == "__main__":
    run_command(main)
