"""Serve a model for rollouts: the vLLM server that rollout.servers of a reinforcement learning run names.

It starts with random weights; the run sends its own before it asks for anything. Who reaches its port can change its
weights: bind it to a network only where you trust everyone. With VLLM_API_KEY set, here and in the run, generation
asks for that key.

example:
  python -m qedmeg serve --model Qwen3-4B --host 10.0.0.7 --port 8000 --tp 2 --max-length 32768
"""

import argparse
import ipaddress
import os
import socket
import sys
from pathlib import Path

from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.model.families import read_architecture
from qedmeg.rollout.engine import rollout_options
from qedmeg.rollout.server import command, environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = RolloutConfig()
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder: its config.json is enough")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size (default: %(default)s)")
    parser.add_argument("--max-length", type=int, help="longest prompt and answer, in tokens (default: the model's)")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=defaults.concurrency,
        help="most rollouts generated at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--kv-cache-gib",
        type=float,
        help="memory for keys and values (default: a quarter GiB on CPU, 92 %% of a GPU with the weights)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Become the server; returns only by an error."""
    model = read_architecture(arguments.model)
    max_length = arguments.max_length or model.max_positions
    if not 2 <= max_length <= model.max_positions:
        raise UserError(f"--max-length: {max_length} is not between 2 and the model's context of {model.max_positions}")
    for option in ("tp", "concurrency"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option}: {getattr(arguments, option)} is less than 1")
    if arguments.kv_cache_gib is not None and arguments.kv_cache_gib <= 0:
        raise UserError(f"--kv-cache-gib: {arguments.kv_cache_gib:g} is not greater than 0")
    if not _is_loopback(arguments.host, arguments.port):
        print(
            f"warning: whoever reaches {arguments.host} port {arguments.port} can change this model's weights; "
            "let no one in whom you do not trust",
            file=sys.stderr,
            flush=True,
        )
    options = rollout_options(max_length, arguments.tp, arguments.concurrency, arguments.kv_cache_gib)
    start = command(arguments.model, arguments.host, arguments.port, options)
    os.execve(start[0], start, environment())


def _is_loopback(host: str, port: int) -> bool:
    """Whether only this machine reaches an address.

    Raises:
        UserError: it is no address of this machine, or someone listens there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: {reason}; give an address of this machine and a free port"
        ) from None
    return ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback
