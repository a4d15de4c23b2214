"""`python -m qedmeg view PATH ...`: a local web page over evaluations and runs."""

import argparse
import ipaddress
import socket
import sys
import time
from pathlib import Path

from aiohttp import web

from qedmeg.errors import UserError
from qedmeg.viewer.catalogue import Catalogue
from qedmeg.viewer.hand import HAND_FILE
from qedmeg.viewer.server import make_app

LOOPBACK = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `view` on its (sub)parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Show files of results and run folders as a local web page: runs and models side by side, each problem with\n"
        f"its proofs, grades and calls, and grading by hand. Only {HAND_FILE} beside the results is ever\n"
        "written. Files that are still being written can be looked at. It needs no network, and 1 kB of memory an\n"
        "attempt."
    )
    parser.epilog = (
        "examples:\n  python -m qedmeg view runs/eval/results.sqlite\n"
        "  python -m qedmeg view runs/eval runs/grpo --port 8000\n\n"
        "on another machine: ssh -L 8000:127.0.0.1:8000 MACHINE, and open http://127.0.0.1:8000 here"
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="file of results, folder of such, or run_dir of a recipe"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen at (default: one that is free)")
    parser.add_argument(
        "--host", default=LOOPBACK, help="address to listen at (default: %(default)s, this machine only)"
    )


def main(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises UserError for paths with nothing to show, and where it cannot listen."""
    began = time.monotonic()
    paths = list({path.resolve(): path for path in args.paths}.values())
    catalogue = Catalogue(paths)
    try:
        listener = _listen(args.host, args.port)
    except BaseException:
        catalogue.close()
        raise
    if not _is_loopback(args.host):
        print(
            f"warning: --host {args.host}: whoever reaches this port can read all that is shown, and grade",
            file=sys.stderr,
        )
    snapshot = catalogue.snapshot()
    counts = f"{len(snapshot.runs):,} runs, {len(snapshot.problems):,} problems, {len(snapshot.entries):,} attempts"
    print(f"{counts}, read in {time.monotonic() - began:.1f} s")
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{host}:{listener.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    web.run_app(make_app(catalogue, args.host), sock=listener, print=None, access_log=None)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: expected a number from 0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error}; give another") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
