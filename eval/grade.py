"""Grade the answers of evaluations; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.grade import main

if __name__ == "__main__":
    run_command(main)
