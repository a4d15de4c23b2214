"""python -m qedmeg COMMAND: what is not a recipe."""

import argparse
import importlib
import sys

from qedmeg.errors import run_command

COMMANDS = {
    "doctor": ("qedmeg.doctor", "what is installed here, what is missing for what"),
    "report": ("qedmeg.monitor.report", "a run's curves and proofs as one HTML file"),
    "view": ("qedmeg.viewer.command", "evaluations and runs as a local web page, and grading by hand"),
    "show-batch": ("qedmeg.data.show_batch", "a packed batch with what is trained on marked"),
    "serve": ("qedmeg.rollout.serve", "a vLLM server that a run generates its rollouts by"),
}


def main() -> int:
    """Run the command that the first argument names."""
    parser = argparse.ArgumentParser(
        prog="python -m qedmeg",
        description="Look at this machine, at data and at runs.",
        epilog="example:\n  python -m qedmeg doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    module = None
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == asked:
            # no other: doctor must run where the packages that others need are missing
            module = importlib.import_module(module_name)
            command.description = module.__doc__
            module.add_arguments(command)
    arguments = parser.parse_args()
    assert module is not None  # the parser has ended the process for any other word
    return int(module.main(arguments))


if __name__ == "__main__":
    run_command(main)
