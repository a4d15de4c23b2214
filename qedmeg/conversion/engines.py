"""What transformers, Megatron-core and vLLM make of the same tokens, each asked in a process of its own.

Of its own, so that memory and threads are given back, vLLM gets the environment that it needs, and conversion itself
imports none of them. All compute in fp32. `python -m qedmeg.conversion.engines` is the process's side.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from qedmeg.monitor.progress import bar

EngineName = Literal["transformers", "megatron", "vllm"]
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's attention takes on a CPU."""
_TIMEOUT = 3600.0
_OF_A_JOB = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's: these stand alone
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


class EngineFailed(Exception):
    """An engine ended without an answer; the message is its last line."""


@dataclass(frozen=True)
class Job:
    """Ask `engine` of the model in `folder`: a Hugging Face folder, for megatron a checkpoint folder."""

    engine: EngineName
    folder: str


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def ask(jobs: Sequence[Job], prompts: Sequence[Sequence[int]]) -> list[list[npt.NDArray[np.float32]]]:
    """For each job and each prompt of T token ids: logits [T, vocabulary]; of vLLM [T - 1] logprobs of tokens 1, 2, ...

    The jobs run at the same time.

    Raises:
        EngineFailed: a process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="engines-") as scratch:
        folder = Path(scratch)
        (folder / "prompts.json").write_text(json.dumps(prompts))
        with bar("ask " + ", ".join(job.engine for job in jobs), len(jobs)) as progress:
            processes = [_start(job, folder, f"{number}") for number, job in enumerate(jobs)]
            try:
                for number, (job, process) in enumerate(zip(jobs, processes, strict=True)):
                    status = process.wait(_TIMEOUT)
                    if status:
                        reason = (
                            f"{job.engine} was killed by signal {-status}" if status < 0 else f"{job.engine} failed"
                        )
                        raise EngineFailed(f"{reason}: {_last_line(folder / f'{number}.log')}")
                    progress.advance(note=job.engine)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        return [_read_answer(folder / f"{number}.npz") for number in range(len(jobs))]


def _start(job: Job, folder: Path, name: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB} | _ENVIRONMENT
    files = (str(folder / "prompts.json"), str(folder / f"{name}.npz"))
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "qedmeg.conversion.engines", job.engine, job.folder, *files],
            env=environment,
            stdout=log,
            stderr=log,
        )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _read_answer(path: Path) -> list[npt.NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(arrays.files))]


def _transformers(folder: Path, prompts: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]


def _megatron(folder: Path, prompts: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    from qedmeg import device

    device.prepare()
    import torch

    from qedmeg import parallel
    from qedmeg.model import build, checkpoint_folder, weights

    model = checkpoint_folder.read_unmarked(folder).model
    alone = parallel.Parallelism()
    parallel.initialize(alone, seed=1)
    chunks = build.build_model(model, alone, build.Compute())
    weights.load_megatron(chunks, folder)
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens_BT = torch.tensor([prompt], device=device.current())
            logits_BTV = chunks[0](tokens_BT, torch.arange(len(prompt)).expand_as(tokens_BT), None)
            answers.append(logits_BTV[0, :, : model.vocabulary].cpu().numpy())
    torch.distributed.destroy_process_group()
    return answers


def _vllm(folder: Path, prompts: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    from qedmeg.rollout.engine import Engine

    engine = Engine(folder, max(map(len, prompts)) + 1, fp32=True)
    return [np.array(logprobs) for logprobs in engine.logprobs(prompts)]


_ENGINES: dict[str, Callable[[Path, list[list[int]]], list[npt.NDArray[np.float32]]]] = {
    "transformers": _transformers,
    "megatron": _megatron,
    "vllm": _vllm,
}


def main(engine: str, folder: str, prompts_file: str, answer_file: str) -> None:
    """Answer one job of `ask`."""
    prompts = json.loads(Path(prompts_file).read_text())
    answers = _ENGINES[engine](Path(folder), prompts)
    np.savez(answer_file, *(answer.astype(np.float32) for answer in answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
