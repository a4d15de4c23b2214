"""Release a trained model, to a folder and to the hub; see --help."""

from qedmeg.errors import run_command
from qedmeg.release.command import main

if __name__ == "__main__":
    run_command(main)
