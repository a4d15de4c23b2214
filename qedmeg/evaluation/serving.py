"""The models of an evaluation: behind an address, or a folder of this machine that a vLLM server is started for."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from qedmeg.chat.model import ServedModel
from qedmeg.config import EndpointConfig
from qedmeg.data.chat import opens_thought
from qedmeg.data.tokenizer import load_tokenizer
from qedmeg.errors import UserError, near_miss
from qedmeg.model.families import read_architecture
from qedmeg.rollout.engine import hardware_options, seeded_options
from qedmeg.rollout.server import Server, ServerProcess, wait_until_up
from qedmeg.settings import Settings, check_settings, load_config

SECONDS_TO_START = 900.0
_READY = files("qedmeg.evaluation") / "models"


class LocalConfig(Settings):
    """A model folder of this machine."""

    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of the probability that tokens are sampled from. None: all."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer. None: what the context leaves."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt and answer, in tokens. None: the model's context."""
    tp: int = Field(default=1, ge=1)
    """Tensor parallel size of the server."""
    concurrency: int = Field(default=64, ge=1)
    """Most answers generated at a time."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Memory for keys and values. None: a quarter GiB on CPU, 90 % of a GPU."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: `endpoint` has its address, or `folder` its weights."""

    name: str
    endpoint: EndpointConfig | None = None
    folder: Path | None = None
    weights: str = ""
    """Hash of the folder's weights, which takes a while to make."""
    local: LocalConfig = field(default_factory=LocalConfig)

    def settings(self) -> dict[str, Any]:
        """What its answers depend on."""
        if self.endpoint is not None:
            shared = {"model", "temperature", "top_p", "reasoning_effort", "max_tokens"}
            return self.endpoint.model_dump(mode="json", include=shared)
        sampling = self.local.model_dump(mode="json", include={"temperature", "top_p", "max_tokens", "max_length"})
        return {"model": self.name, "weights": self.weights, **sampling}

    def greedy(self) -> "ModelSource":
        """The same at temperature 0."""
        if self.endpoint is not None:
            return replace(self, endpoint=self.endpoint.model_copy(update={"temperature": 0.0}))
        return replace(self, local=self.local.model_copy(update={"temperature": 0.0}))


def find_model(name: str, settings: dict[str, Any]) -> ModelSource:
    """The model of a folder, of a settings file, or of a name that there are ready settings for.

    Raises:
        UserError: there is none, or `settings` do not fit it.
    """
    if (Path(name) / "config.json").is_file():
        folder, local = Path(name), check_settings(LocalConfig, settings, name)
        return ModelSource(folder.resolve().name, folder=folder, weights=weights_hash(folder), local=local)
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    if name.endswith((".yaml", ".yml")):
        return ModelSource(Path(name).stem, endpoint=load_config(EndpointConfig, name, overrides))
    ready = ready_models()
    if name not in ready:
        raise UserError(
            f"--model: {name}: no folder with a config.json, no settings file, and no model with ready settings"
            f"{near_miss(name, ready)}; there are {', '.join(ready)}"
        )
    return ModelSource(name, endpoint=load_config(EndpointConfig, str(_READY / f"{name}.yaml"), overrides))


def ready_models() -> list[str]:
    """Names of the models that there are settings and prices for."""
    return sorted(path.name.removesuffix(".yaml") for path in _READY.iterdir() if path.name.endswith(".yaml"))


@asynccontextmanager
async def served(source: ModelSource, logs: Path) -> AsyncIterator[ServedModel]:
    """The model, ready to be asked; a server that was started for it ends with it.

    Raises:
        UserError: the server does not start, or a key is missing.
    """
    if source.endpoint is not None:
        async with _asked(source.endpoint) as model:
            yield model
        return
    assert source.folder is not None
    local = source.local
    context = read_architecture(source.folder).max_positions
    if local.max_length is not None and local.max_length > context:
        raise UserError(f"model.max_length: {local.max_length} is longer than the model's context of {context}")
    thinks = opens_thought(load_tokenizer(source.folder))
    name = f"{source.name}-{source.weights[:8]}"
    max_length = local.max_length or context
    options = hardware_options(tp=local.tp, kv_cache_gib=local.kv_cache_gib) | seeded_options(max_length)
    options |= {
        "generation_config": "vllm",  # the settings say all about sampling, not the folder
        "max_model_len": max_length,
        "max_num_seqs": local.concurrency,
    }
    logs.mkdir(parents=True, exist_ok=True)
    with closing(ServerProcess(source.folder, options, logs / f"vllm_{source.name}.log", chat=name)) as process:
        server = Server(process.address)
        try:
            await wait_until_up(server, process, SECONDS_TO_START)
        finally:
            await server.close()
        endpoint = EndpointConfig(
            base_url=f"{process.address}/v1",
            model=name,
            temperature=local.temperature,
            top_p=local.top_p,
            max_tokens=local.max_tokens,
            seeded=True,
            concurrency=min(1000, 2 * local.concurrency),  # the server always has the next ones at hand
        )
        watch = asyncio.create_task(_end_with(process, asyncio.current_task()))
        try:
            async with _asked(endpoint, opens_thought=thinks) as model:
                yield model
        except asyncio.CancelledError:
            if (ended := process.ended()) is None:
                raise
            raise UserError(f"{ended}\nWhat was answered is kept; mend the cause and run the same again") from None
        finally:
            watch.cancel()


@asynccontextmanager
async def _asked(endpoint: EndpointConfig, *, opens_thought: bool = False) -> AsyncIterator[ServedModel]:
    model = ServedModel(endpoint, opens_thought=opens_thought)
    try:
        yield model
    finally:
        await model.close()


async def _end_with(process: ServerProcess, task: "asyncio.Task[Any] | None") -> None:
    """Cancel a task when a server has ended: what it asks would be asked again for hours."""
    while process.ended() is None:
        await asyncio.sleep(1.0)
    if task is not None:
        task.cancel()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's weights and configuration."""
    whole = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
