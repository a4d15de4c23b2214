"""`python -m tests.rollout.held_server FOLDER LOG` starts a vLLM server, prints its address and waits to be killed."""

import sys
import time
from pathlib import Path

from qedmeg.rollout.server import ServerProcess
from tests.rollout import policies

if __name__ == "__main__":
    process = ServerProcess(Path(sys.argv[1]), policies.options(), Path(sys.argv[2]))
    print(process.address, flush=True)
    time.sleep(3600)
