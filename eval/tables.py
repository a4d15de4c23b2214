"""The tables of QED-Nano from stored runs, beside the published figures; see --help."""

from qedmeg.errors import run_command
from qedmeg.evaluation.tables import main

if __name__ == "__main__":
    run_command(main)
