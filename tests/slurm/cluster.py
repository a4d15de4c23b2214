"""A real SLURM on this machine: munge, one controller and two nodes, for as long as one command runs.

    python tests/slurm/cluster.py COMMAND [ARGUMENT ...]

The two nodes n1 and n2 are two slurmd on the loopback address. Everything they write lies in a temporary folder that
is removed with them; the command finds the cluster through SLURM_CONF. Missing SLURM programs are installed with
apt-get when this runs as root.
"""

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
NODES = ("n1", "n2")
START_SECONDS = 30.0
STOP_SECONDS = 15.0

SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits until its old credential has expired: 120 seconds by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
ReturnToService=2
MpiDefault=none
KillWait=20
InactiveLimit=0
JobRequeue=1
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={n1_port} CPUs=4
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={n2_port} CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def find_programs() -> dict[str, str]:
    """The absolute path of every SLURM program, installing Debian's packages as root when one is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = {program: shutil.which(program, path=path) for program in PROGRAMS}
    if all(found.values()):
        return {program: str(location) for program, location in found.items()}
    missing = ", ".join(program for program, location in found.items() if not location)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"error: {missing} not found; install as root: apt-get install {' '.join(PACKAGES)}")
    print(f"{missing} not found: installing {', '.join(PACKAGES)}", file=sys.stderr)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=sys.stderr)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        check=True,
        env=environment,
        stdout=sys.stderr,
    )
    return {program: str(shutil.which(program, path=path)) for program in PROGRAMS}


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that were free on the loopback address a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def daemon(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in the foreground mode of its daemon, its output in `log`, and stop it at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start the cluster, yield the environment in which SLURM's commands find it, and stop it.

    Raises RuntimeError with the ends of the daemons' logs when the nodes are not idle after `START_SECONDS`.
    """
    programs = find_programs()
    ctld_port, n1_port, n2_port = free_ports(3)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # munge refuses to keep its socket where its clients cannot reach it
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        conf = folder / "slurm.conf"
        conf.write_text(
            SLURM_CONF.format(
                host=socket.gethostname(),
                user=getpass.getuser(),
                folder=folder,
                ctld_port=ctld_port,
                n1_port=n1_port,
                n2_port=n2_port,
            )
        )
        environment = os.environ | {"SLURM_CONF": str(conf)}
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        munged = [programs["munged"], "--foreground", "--force", f"--socket={folder}/munge.socket", *files]
        commands = {"munged": munged, "slurmctld": [programs["slurmctld"], "-D", "-f", str(conf)]}
        commands |= {f"slurmd-{node}": [programs["slurmd"], "-D", "-N", node, "-f", str(conf)] for node in NODES}
        daemons = []
        for name, command in commands.items():
            daemons.append(stack.enter_context(daemon(command, folder / f"{name}.out", environment)))
            if name == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _wait_for(lambda: _idle_nodes(environment) == len(NODES), folder)
        stack.callback(_cancel_all, environment)
        yield environment


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return len(answer.stdout.split())


def _cancel_all(environment: dict[str, str]) -> None:
    """End every job that is left, so that no process of a job outlives its slurmd."""
    subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        jobs = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True, check=False)
        if not jobs.stdout.strip():
            return
        time.sleep(0.5)


def _wait_for(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
                for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            )
            raise RuntimeError(f"SLURM did not start within {START_SECONDS:.0f} s\n{logs}")
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run while the cluster is up")
    command = parser.parse_args().command
    if not command:
        parser.error("no command to run")
    with cluster() as environment:
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
