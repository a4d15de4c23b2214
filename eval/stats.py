"""What runs scored, and how sure that is; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.stats import main

if __name__ == "__main__":
    run_command(main)
