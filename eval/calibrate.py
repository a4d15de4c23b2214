"""Compare a grader with people, and attack it; see --help."""

from qedmeg.errors import run_command
from qedmeg.grading.calibration import main

if __name__ == "__main__":
    run_command(main)
