"""The model card: the hub's header, and the page made of lineage, settings, evaluations and checks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from qedmeg.config import SFTConfig
from qedmeg.conversion.report import Report
from qedmeg.lineage.origin import RunSettings
from qedmeg.lineage.stages import MODEL, Stage, Start
from qedmeg.release.evaluated import Evaluated, at_k, eval_results, groups, left_out, overview
from qedmeg.release.generation import Sampling
from qedmeg.release.markdown import Markdown, code, environment, table

KEY_SETTINGS = (
    *("max_steps", "epochs", "seed", "data.prompts_per_step", "data.rollouts_per_prompt", "data.max_length"),
    *("data.prompt", "data.thinking", "rollout.max_tokens", "rollout.temperature", "rollout.max_lag"),
    *("rollout.drop_zero_variance", "cache.rounds", "cache.keep", "cache.train", "algorithm", "advantage.baseline"),
    *("advantage.divide_by_std", "loss.objective", "loss.clip_low", "loss.clip_high", "loss.kl_coef", "kl_penalty"),
    *("loss.normalisation", "minibatches", "optimizer.lr", "optimizer.schedule", "optimizer.warmup_steps"),
    *("optimizer.weight_decay", "optimizer.clip_grad", "compute.precision", "compute.fp8"),
    *("parallel.tp", "parallel.pp", "parallel.cp", "parallel.ep"),
)
_PROBLEM = "Prove that the sum of two even integers is even."


@dataclass(frozen=True)
class Release:
    """All that a card tells of."""

    name: str
    """As it is loaded: ORG/NAME, or the folder's."""
    license: str | None
    base_model: str | None
    """Its id on the hub."""
    limits: str
    """Markdown of whoever releases it."""
    config: RunSettings
    stages: tuple[Stage, ...]
    sampling: Sampling
    verified: Report
    evaluated: Sequence[Evaluated]


def card(release: Release) -> str:
    """The text of README.md: YAML between two lines of dashes, then Markdown."""
    content = f"---\n{_header(release).to_yaml()}\n---\n\n{_page(release)}"
    ModelCard(content)  # reads the header back, as the hub will
    return content


def _header(release: Release) -> ModelCardData:
    short = release.name.rpartition("/")[2]
    datasets = [
        file.name for stage in release.stages for start in stage.starts for file in start.data if not file.sha256
    ]
    return ModelCardData(
        license=release.license,
        base_model=release.base_model or _base_model(release.stages[0]),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mathematics", "theorem-proving", "qedmeg", *(stage.kind.lower() for stage in release.stages[1:])],
        datasets=sorted({name for name in datasets if "/" in name}) or None,
        model_name=short,
        eval_results=eval_results(release.evaluated) or None,
    )


def _base_model(first: Stage) -> str | None:
    """The first model's id on the hub, where it was read from the hub's cache."""
    return first.name if first.kind == MODEL and "/" in first.name else None


def _page(release: Release) -> str:
    config = release.config
    return (
        environment()
        .get_template("card.md.jinja")
        .render(
            name=release.name.rpartition("/")[2],
            described=release.verified.model,
            license=release.license,
            stages=release.stages,
            transformers_snippet=Markdown(transformers_snippet(release.name, config)),
            vllm_snippet=Markdown(vllm_snippet(release.name, config)),
            thinking=not isinstance(config, SFTConfig) and config.data.thinking,
            sampling=release.sampling,
            evaluated=release.evaluated,
            own_score=bool(eval_results(release.evaluated)),
            overview=overview(release.evaluated),
            groups=groups,
            at_k=at_k,
            left_out=left_out,
            recipe=_recipe(release.stages),
            data=_data(release.stages),
            packages=_packages,
            verification=_verification(release.verified),
            graders=sorted({one.summary.grader for one in release.evaluated if one.summary.grader}),
            reward=_rewarded_by(release.stages[-1].settings or {}),
            not_run=release.verified.not_run,
            limits=Markdown(release.limits.strip()),
        )
    )


# --- what the page is made of ---------------------------------------------------------------------------------------


def _messages(config: RunSettings) -> str:
    """Python for the messages that ask for a proof, as the run was asked."""
    prompt = "{problem}" if isinstance(config, SFTConfig) else config.data.prompt
    content = "problem" if prompt == "{problem}" else f"{prompt!r}.format(problem=problem)"
    return f'[{{"role": "user", "content": {content}}}]'


def transformers_snippet(name: str, config: RunSettings) -> str:
    """Python that proves something with transformers."""
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name!r}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
problem = {_PROBLEM!r}
messages = {_messages(config)}
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def vllm_snippet(name: str, config: RunSettings) -> str:
    """The same with vLLM, which reads its sampling from the same file."""
    return f"""\
from vllm import LLM

if __name__ == "__main__":  # its engine is a process of its own
    model = LLM({name!r})
    problem = {_PROBLEM!r}
    messages = {_messages(config)}
    print(model.chat(messages)[0].outputs[0].text)"""


def _recipe(stages: Sequence[Stage]) -> Markdown | None:
    """Settings by stage, those that some stage has."""
    runs = [stage for stage in stages if stage.settings]
    if not runs:
        return None
    rows = [(name, *(_setting(stage.settings or {}, name) for stage in runs)) for name in KEY_SETTINGS]
    rows.append(("rewarded by", *(_rewarded_by(stage.settings or {}) or "-" for stage in runs)))
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return table(("setting", *(f"{stage.kind} {stage.name}" for stage in runs)), rows)


def _setting(settings: dict[str, Any], name: str) -> str:
    """The value of a dotted setting; a dash where there is none."""
    if name == "epochs" and settings.get("max_steps") is not None:
        return "-"  # steps take their place
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "-" if value is None else str(value)


def _rewarded_by(settings: dict[str, Any]) -> str:
    """Who graded a run's rollouts; empty of fine-tuning."""
    if "grader" not in settings:
        return ""
    judges = settings["grader"].get("judges") or []
    named = ((judge["model"] or judge["serve"]["folder"], judge["votes"]) for judge in judges)
    return ", ".join(f"{name} (votes {votes})" for name, votes in named) or "the symbolic proof checker"


def _data(stages: Sequence[Stage]) -> Markdown | None:
    rows = []
    for stage in stages:
        for file in dict.fromkeys(file for start in stage.starts for file in start.data):
            count = "unknown" if file.rows is None else f"{file.rows:,}"
            checksum = code(file.sha256) if file.sha256 else "unknown"
            rows.append((f"{stage.kind} {stage.name}", file.name, count, checksum, file.note or "train"))
    return table(("stage", "file", "rows", "SHA-256", "what"), rows) if rows else None


def _packages(start: Start) -> str:
    return ", ".join(f"{name} {version}" for name, version in start.packages.items()) or "packages unknown"


def _verification(verified: Report) -> Markdown:
    rows = [(check.name, check.status, check.detail) for check in verified.checks]
    return table(("check", "result", "detail"), rows)


def settings_file(number: int, stage: Stage) -> tuple[str, str]:
    """Name and content of the settings of a stage, as they are released."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{number}-{stage.kind.lower()}-{stage.name}").strip("-.")
    text = yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True, width=120)
    return f"{name}.yaml", f"# Paths, addresses and names of keys are masked.\n{text}"
