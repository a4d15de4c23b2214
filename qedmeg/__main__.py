"""python -m qedmeg COMMAND: what is not a recipe."""

import argparse

from qedmeg import doctor
from qedmeg.data import show_batch
from qedmeg.errors import run_command

COMMANDS = {
    "doctor": (doctor, "what is installed here, what is missing for what"),
    "show-batch": (show_batch, "a packed batch with what is trained on marked"),
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
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    arguments = parser.parse_args()
    return COMMANDS[arguments.command][0].main(arguments)


if __name__ == "__main__":
    run_command(main)
