"""Answer a benchmark's problems with a model or a scaffold; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.run import main

if __name__ == "__main__":
    run_command(main)
