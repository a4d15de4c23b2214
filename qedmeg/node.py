"""torchrun for one node of a job, as a function and as the command that SLURM jobs start once a node.

What it adds to torchrun, whose own status is 1 after any failure and after any signal, whatever the ranks did:
  - the status of the job: 0 done, EXIT_REQUEUE stopped and to be resumed, otherwise that of the first rank to fail;
  - SIGTERM, SIGHUP and Ctrl-C all reach the ranks as one SIGTERM, and they get the time to save; a second SIGTERM
    (SLURM may send several) does not cut the save short, a second Ctrl-C does;
  - a log per rank under a plain name, and only rank 0 on the console.

A recipe's part: on SIGTERM finish the step, save, and exit with EXIT_REQUEUE on every rank. All processes of a rank
get the signal, SLURM's copy too: it comes more than once, and to child processes as well.
"""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from qedmeg.errors import EXIT_REQUEUE, EXIT_USER_ERROR

RENDEZVOUS_SECONDS = 900  # the nodes of a job may come up minutes apart
TAIL_LINES = 30
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True)
class Node:
    """This machine's part of a job."""

    processes: int
    logs: Path
    """Folder of this attempt's logs; it must not have been used before."""
    grace: int
    """Seconds that the ranks get to save and end after a signal."""
    job: str = "local"
    nodes: int = 1
    index: int = 0
    """Which of the nodes this is; ranks are numbered in this order, and node 0 holds the rendezvous."""
    rendezvous: str = "127.0.0.1:0"
    """host:port on node 0; port 0 is any free one, where there is only one node."""


class RankLogs(LogsSpecs):
    """Sends rank R's output to rank-R.out and rank-R.err in one folder, and rank 0's to the console too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        self.folder.mkdir(parents=True, exist_ok=True)
        out = {local: str(rank_log(self.folder, int(env["RANK"]), "out")) for local, env in envs.items()}
        err = {local: str(rank_log(self.folder, int(env["RANK"]), "err")) for local, env in envs.items()}
        console = [local for local, env in envs.items() if env["RANK"] == "0"]
        for env in envs.values():
            env["TORCHELASTIC_ERROR_FILE"] = ""
        return LogsDest(
            stdouts=out,
            stderrs=err,
            tee_stdouts={local: out[local] for local in console},
            tee_stderrs={local: err[local] for local in console},
            error_files=dict.fromkeys(envs, os.devnull),
        )


def rank_log(folder: Path, rank: int, stream: str) -> Path:
    """Where rank `rank` writes its `stream`, `out` or `err`."""
    return folder / f"rank-{rank}.{stream}"


def run_node(node: Node, command: Sequence[str]) -> int:
    """Run `command` (a Python file and its arguments) in `node.processes` ranks and wait for them.

    Meant to be the last thing that a process does: it leaves the signals ignored.

    Returns:
        0 when all ranks on this node did; EXIT_REQUEUE when they were stopped by a signal to this process or exited
        with it; else the exit status of the first rank to fail, 128 + n for one killed by signal n.

    Raises:
        torch.distributed.DistError and others of torch's own: when the nodes do not find each other.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // node.processes)))
    host = node.rendezvous.rpartition(":")[0]
    interface = interface_towards(host)
    if interface:
        # gloo would take the address that this machine's own name resolves to, which Debian sets to 127.0.1.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    alone = node.nodes == 1
    config = LaunchConfig(
        min_nodes=node.nodes,
        max_nodes=node.nodes,
        nproc_per_node=node.processes,
        run_id=node.job,
        role="rank",
        # `static` numbers the ranks in the order of the nodes, where c10d would sort them by their addresses as text
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=node.rendezvous,
        rdzv_configs={"is_host": True} if alone else {"rank": node.index, "timeout": RENDEZVOUS_SECONDS},
        local_addr=host if alone else None,
        max_restarts=0,
        logs_specs=RankLogs(node.logs),
        log_line_prefix_template="[rank ${rank}] ",
        signals_to_handle="SIGQUIT",  # the others are handled here
        shutdown_timeout=node.grace,
    )
    stop = _Stop()
    for number in HANDLED_SIGNALS:
        signal.signal(number, stop)
    try:
        elastic_launch(config, sys.executable)("-u", *command)
        return 0
    except SignalException:
        return EXIT_REQUEUE
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        if status == EXIT_USER_ERROR and rank != 0:
            # the ranks take turns with some of the reading: the mistake may be known to this one alone
            told = rank_log(node.logs, rank, "err").read_text(encoding="utf-8", errors="replace")
            print(told, end="", file=sys.stderr)
        elif status not in (EXIT_REQUEUE, EXIT_USER_ERROR):
            _report_failure(rank, status, node.logs)
        return status
    finally:
        _kill_descendants()  # a rank that was being started when the signal came is in no list of torch's
        for number in HANDLED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop, and the status is still to be told


def interface_towards(host: str) -> str | None:
    """The name of the network interface by which this machine reaches `host`; None when that cannot be told."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # no packet leaves: a datagram socket only chooses its route
            own = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if own in (one.address for one in addresses)), None)


class _Stop:
    """Signal handler: the first signal ends the job with a SIGTERM to the ranks, a Ctrl-C after it kills them."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            name = signal.Signals(number).name
            print(f"{name}: the ranks save and end", file=sys.stderr, flush=True)
            raise SignalException(f"stopped by {name}", sigval=signal.SIGTERM)
        if number == signal.SIGINT:
            _kill_descendants()


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _report_failure(rank: int, status: int, logs: Path) -> None:
    log = rank_log(logs, rank, "err")
    print(f"rank {rank} failed with exit status {status}; its output: {log}", file=sys.stderr, flush=True)
    if rank != 0:  # rank 0's has been on the console already
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join(f"[rank {rank}] {line}" for line in lines), file=sys.stderr, flush=True)


def main() -> int:
    """Run this node's part of a SLURM job step and leave its status in node-INDEX.status for the batch script.

    The step's own exit status cannot be told from the outside: when one node has ended, srun kills the others.
    """
    parser = argparse.ArgumentParser(
        description="Run one node's ranks of a SLURM job; started by the jobs that launch/slurm.py writes.",
        epilog="example: srun python -m qedmeg.node --processes 8 --rendezvous node7:29400 --grace 285 --logs DIR -- "
        "recipes/sft.py --config sft.yaml run_dir=runs/sft",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, help="ranks on this node")
    parser.add_argument("--rendezvous", required=True, help="host:port on the first node")
    parser.add_argument("--grace", type=int, required=True, help="seconds that the ranks get to save after SIGTERM")
    parser.add_argument("--logs", type=Path, required=True, help="folder for this attempt's logs")
    parser.add_argument("command", nargs="+", help="-- RECIPE and its arguments")
    args = parser.parse_args()
    node = Node(
        processes=args.processes,
        logs=args.logs,
        grace=args.grace,
        job=os.environ["SLURM_JOB_ID"],
        nodes=int(os.environ["SLURM_JOB_NUM_NODES"]),
        index=int(os.environ["SLURM_NODEID"]),
        rendezvous=args.rendezvous,
    )
    first = node.index * node.processes
    print(f"node {node.index}, {socket.gethostname()}: ranks {first} to {first + node.processes - 1}", flush=True)
    status = 1
    try:
        status = run_node(node, args.command)
    finally:
        (args.logs / f"node-{node.index}.status").write_text(f"{status}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
