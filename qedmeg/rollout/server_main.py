"""The process of a vLLM server: vLLM's own main program, whose whole tree of processes ends when it is killed.

vLLM spawns its workers, and a spawned process imports its parent's main module anew, this one: each of them has the
kernel end it when its parent ends, in whatever way.
"""

import ctypes
import os
import signal

PARENT = "QEDMEG_SERVER_PARENT"
"""Environment variable: the process id that the process ends with. Not set: the server outlives who started it."""


def _end_with(parent: int) -> None:
    kill_when_parent_ends = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(kill_when_parent_ends, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ in ("__main__", "__mp_main__"):
    if PARENT in os.environ:
        _end_with(int(os.environ[PARENT]))
    os.environ[PARENT] = f"{os.getpid()}"  # what this process spawns ends with it
    from qedmeg.rollout.engine import register_kernels

    register_kernels()

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
