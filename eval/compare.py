"""Two runs on the same problems; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.compare import main

if __name__ == "__main__":
    run_command(main)
