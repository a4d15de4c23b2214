"""Answer, grade, statistics and comparison in one; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.everything import main

if __name__ == "__main__":
    run_command(main)
