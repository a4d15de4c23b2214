"""The smallest recipe that keeps to what the launchers ask of one: it counts, over all ranks, one step at a time.

    counter.py --config FILE run_dir=DIR [steps=N] [seconds=S] [fail_at=STEP] [fail_rank=R]

It resumes from run_dir/checkpoint.json, and appends a line per event to run_dir/events.jsonl.
"""

import argparse
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from qedmeg.errors import EXIT_REQUEUE

stop_asked = False


def ask_to_stop(_number: int, _frame: object) -> None:
    global stop_asked
    stop_asked = True


def main() -> int:
    signal.signal(signal.SIGTERM, ask_to_stop)
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    settings = yaml.safe_load(args.config.read_text()) | dict(one.split("=", 1) for one in args.overrides)
    run_dir, steps, seconds = Path(settings["run_dir"]), int(settings["steps"]), float(settings["seconds"])
    fail_at, fail_rank = int(settings.get("fail_at", -1)), int(settings.get("fail_rank", 0))

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    checkpoint = run_dir / "checkpoint.json"
    step, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0.0)

    def log(event: str) -> None:
        node, attempt = os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_RESTART_COUNT", "0")
        line = {"event": event, "step": step, "total": total, "rank": rank, "node": node, "attempt": int(attempt)}
        with (run_dir / "events.jsonl").open("a") as events:
            events.write(json.dumps(line) + "\n")

    def save() -> None:
        if rank == 0:
            partial = run_dir / "checkpoint.tmp"
            partial.write_text(json.dumps([step, total]))
            partial.rename(checkpoint)
        dist.barrier()

    log("start")
    print(f"rank {rank} starts at step {step}", flush=True)
    while step < steps:
        if step == fail_at and rank == fail_rank:
            raise RuntimeError("failing as told")
        time.sleep(seconds)
        sum_and_stop = torch.tensor([float(rank + 1), float(stop_asked)])
        dist.all_reduce(sum_and_stop)
        step, total = step + 1, total + sum_and_stop[0].item()
        if rank == 0:
            print(f"step {step}", flush=True)
        if sum_and_stop[1] > 0:  # the same answer on all ranks: they stop after the same step
            save()
            log("saved")
            dist.barrier()
            return EXIT_REQUEUE
    save()
    log("done")
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
