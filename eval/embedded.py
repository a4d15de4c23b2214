"""Score a model on the embedded problems; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.embedded import main

if __name__ == "__main__":
    run_command(main)
