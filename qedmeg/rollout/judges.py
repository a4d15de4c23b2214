"""Judges that are served by whoever grades: a vLLM server on loopback for each model folder, which ends with it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

from qedmeg import device
from qedmeg.config import GraderConfig, JudgeConfig, JudgeServerConfig
from qedmeg.errors import RunFailed, UserError
from qedmeg.evaluation.serving import weights_hash
from qedmeg.grading.judge_folders import check_judges
from qedmeg.rollout.engine import hardware_options
from qedmeg.rollout.fleet import seen_gpus
from qedmeg.rollout.server import KEY, Server, ServerProcess, wait_until_up


@asynccontextmanager
async def served_judges(
    config: GraderConfig, logs: Path, taken: Sequence[str] = ()
) -> AsyncIterator[tuple[GraderConfig, Awaitable[None]]]:
    """The settings with the addresses of the servers that are started for model folders, and what to await before these
    are asked. The servers end with the block; the block ends when one of them does.

    Args:
        config: whose judges may be folders.
        logs: folder for the servers' logs.
        taken: GPUs that others compute on.

    Raises:
        UserError: a folder cannot be served, or there are too few GPUs. When awaited: a server has ended or does not
            answer in time.
        RunFailed: at the end of the block: a server that was up has ended.
    """
    check_judges(config)
    places = iter(judge_gpus([judge.serve for judge in config.judges if judge.serve], taken))
    judges: list[JudgeConfig] = []
    servers: list[tuple[str, ServerProcess, float]] = []
    with ExitStack() as ending:
        for number, judge in enumerate(config.judges):
            serve = judge.serve
            if serve is not None:
                # takes a while: of all weights
                name = f"{serve.folder.resolve().name}-{(await asyncio.to_thread(weights_hash, serve.folder))[:8]}"
                logs.mkdir(parents=True, exist_ok=True)
                log = logs / f"vllm_judge_{number}.log"
                process = ServerProcess(serve.folder, _options(judge, serve), log, next(places), chat=name)
                ending.enter_context(closing(process))
                servers.append((name, process, serve.start_seconds))
                key = KEY if os.environ.get(KEY) else None
                place = {"base_url": f"{process.address}/v1", "model": name, "api_key_env": key, "serve": None}
                judge = judge.model_copy(update=place)
            judges.append(judge)
        up = asyncio.create_task(_until_up(servers))
        watch = asyncio.create_task(_end_with(servers, up, asyncio.current_task()))
        try:
            yield config.model_copy(update={"judges": tuple(judges)}), up
        except asyncio.CancelledError:
            if not (ended := _ended(servers)):
                raise
            raise RunFailed(ended) from None
        finally:
            up.cancel()
            watch.cancel()
            await asyncio.gather(up, watch, return_exceptions=True)


def judge_gpus(servers: Sequence[JudgeServerConfig], taken: Sequence[str]) -> list[tuple[str, ...]]:
    """The GPUs of each server, which are its alone: those of its settings, or the last that nobody computes on; on a
    CPU none.

    Raises:
        UserError: there are too few, or one is somebody else's.
    """
    if not servers or not device.has_gpu():
        return [()] * len(servers)
    used = {*taken}
    for server in servers:
        if shared := used & {f"{number}" for number in server.devices}:
            raise UserError(
                f"judge {server.folder}: serve.devices: GPU {min(shared)} is that of the trainer, of an engine or of "
                "another judge; give it one of its own, or set rollout.devices"
            )
        used |= {f"{number}" for number in server.devices}
    free = [gpu for gpu in seen_gpus() if gpu not in used]
    found = []
    for server in servers:
        gpus = [f"{number}" for number in server.devices] or free[-server.tp :]
        if len(gpus) < server.tp:
            raise UserError(
                f"judge {server.folder}: it takes serve.tp {server.tp} GPUs of its own, and trainer, engines and other "
                f"judges leave {len(gpus)}; leave it more (rollout.start, rollout.devices), or serve it elsewhere and "
                "give its base_url"
            )
        free = [gpu for gpu in free if gpu not in gpus]
        found.append(tuple(gpus))
    return found


def _options(judge: JudgeConfig, serve: JudgeServerConfig) -> dict[str, object]:
    return {
        **hardware_options(tp=serve.tp, kv_cache_gib=serve.kv_cache_gib),
        "generation_config": "vllm",  # the settings say all about sampling, not the folder
        "max_num_seqs": judge.concurrency,
        **({} if serve.max_length is None else {"max_model_len": serve.max_length}),
    }


async def _until_up(servers: Sequence[tuple[str, ServerProcess, float]]) -> None:
    for name, process, seconds in servers:  # started side by side
        server = Server(process.address)
        try:
            await wait_until_up(server, process, seconds, "serve.start_seconds")
        except UserError as error:
            raise UserError(f"judge {name}: {error}") from None
        finally:
            await server.close()


async def _end_with(
    servers: Sequence[tuple[str, ServerProcess, float]], up: "asyncio.Task[None]", task: "asyncio.Task[object] | None"
) -> None:
    """Cancel a task when a server has ended: its judge would fail every grade."""
    await up  # which tells of an end before
    while servers and not _ended(servers):
        await asyncio.sleep(1.0)
    if servers and task is not None:
        task.cancel()


def _ended(servers: Sequence[tuple[str, ServerProcess, float]]) -> str | None:
    """How the first has ended that has."""
    told = ((name, process.ended()) for name, process, _ in servers)
    return next((f"judge {name}: {ended}" for name, ended in told if ended), None)
