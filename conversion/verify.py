"""Compare a Hugging Face model with a Megatron-core checkpoint, or with another Hugging Face model.

Every tensor bit for bit, the config, the tokenizer, logits in fp32, and vLLM's logprobs. Writes verify.json and
verify.md into the second folder, or into --report."""

import argparse
from pathlib import Path

from qedmeg.conversion import report, verify
from qedmeg.conversion.stored import HuggingFaceModel, MegatronModel, StoredModel
from qedmeg.errors import EXIT_DIFFERS, UserError, run_command
from qedmeg.model.checkpoint_folder import read_checkpoint_folder

EPILOG = """\
examples:
  python conversion/verify.py --hf models/Qwen3-4B --megatron checkpoints/Qwen3-4B
  python conversion/verify.py --hf models/Qwen3-4B --hf exported/Qwen3-4B --checks tensors,config

status: 0 all checks passed; 1 something differs; 2 bad input, or models that cannot be compared"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", type=Path, action="append", required=True, help="Hugging Face folder; once or twice")
    parser.add_argument("--megatron", type=Path, help="checkpoint folder")
    verify.add_checks_argument(parser)
    parser.add_argument("--report", type=Path, help="folder for the report (default: the second of the two)")
    args = parser.parse_args()
    if len(args.hf) + (args.megatron is not None) != 2:
        raise UserError("--hf, --megatron: two models are compared; give --hf and --megatron, or --hf twice")
    with HuggingFaceModel(args.hf[0]) as first, _second(args) as second:
        found = verify.verify(first, second, args.checks)
    folder = args.report or args.megatron or args.hf[1]
    report.write(found, folder, "verify")
    print(found.summary())
    return 0 if found.equal else EXIT_DIFFERS


def _second(args: argparse.Namespace) -> StoredModel:
    return MegatronModel(read_checkpoint_folder(args.megatron)) if args.megatron else HuggingFaceModel(args.hf[1])


if __name__ == "__main__":
    run_command(main)
