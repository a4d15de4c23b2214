"""Trained samples a second of GRPO beside TRL's GRPOTrainer, and the reward of both against minutes.

    python tests/benchmarks/grpo_speed.py --model runs/demo/sft

Both train the demo's model with the settings of recipes/configs/grpo_demo.yaml: the same problems in the same steps,
groups of 8, at most 240 new tokens at temperature 1, fp32, two cores, the same optimizer, schedule and loss, graded by
the same checker. They take turns, and the matrix-product rate is measured between them, so that a noisy machine
disturbs all alike. Asked are 3 times TRL's samples a second; each run's first step is not counted. A longer run of each
gives the curves; their minutes count from the start of the command.

TRL has an environment of its own, made from trl/requirements.txt at the first run, and its fastest setting of
TRL_SETTINGS; `--settings` tries them all. Its vLLM mode is not among them: on CPU vLLM prepacks the weights, and TRL's
first transfer finds no parameters that it could load new ones into.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

sys.path.insert(0, str(Path(__file__).parents[2]))
matplotlib.use("Agg")

from matplotlib import pyplot

from qedmeg.config_rl import GRPOConfig
from qedmeg.data.problems import Problem
from qedmeg.settings import load_config
from tests.benchmarks.grpo_runs import DEMO_CONFIG, in_order, train, write_problems
from tests.benchmarks.side_by_side import HERE, Run, gigaflops, run, spread, trl_python

RESULT = Path(__file__).with_suffix(".json")
PLOT = Path(__file__).with_suffix(".svg")
THREADS = 2
BAR = 3.0


@dataclass(frozen=True)
class TRLSetting:
    """How TRL spreads a step: sequences of a micro-batch, processes (DDP, the threads shared out), and more."""

    micro_batch: int
    processes: int = 1
    more: dict[str, Any] = field(default_factory=dict)


TRL_SETTINGS = {
    "256 at a time": TRLSetting(256),
    "64 at a time": TRLSetting(64),
    "16 at a time": TRLSetting(16),
    "two processes, 128 at a time": TRLSetting(128, processes=2),
    "two processes, 64 at a time": TRLSetting(64, processes=2),
    "64 at a time, static cache": TRLSetting(64, more={"cache_implementation": "static"}),
    "64 at a time, continuous batching": TRLSetting(64, more={"use_transformers_continuous_batching": True}),
}
BEST = "two processes, 128 at a time"


def trl_arguments(config: GRPOConfig, setting: TRLSetting) -> dict[str, Any]:
    """The settings of a run in TRL's words. Its Dr. GRPO loss is ours with token_sum, divided by max_tokens: so are
    then the gradients, which the norm that they are clipped at and Adam's epsilon make up for."""
    optimizer, loss, longest = config.optimizer, config.loss, config.rollout.max_tokens
    known = (loss.objective, loss.ratio, loss.normalisation, loss.kl_coef, optimizer.schedule)
    if known != ("clip", "token", "token_sum", 0.0, "wsd") or config.advantage.divide_by_std:
        sys.exit(f"{DEMO_CONFIG}: {known}: this benchmark does not know TRL's words for it; add them")
    samples = config.data.prompts_per_step * config.data.rollouts_per_prompt
    return {
        "max_steps": config.max_steps,
        "per_device_train_batch_size": setting.micro_batch,
        "gradient_accumulation_steps": samples // (setting.micro_batch * setting.processes),
        "num_generations": config.data.rollouts_per_prompt,
        "max_completion_length": longest,
        "temperature": config.rollout.temperature,
        "shuffle_dataset": False,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
        "epsilon": loss.clip_low,
        "epsilon_high": loss.clip_high,
        "learning_rate": optimizer.lr,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": min(optimizer.warmup_steps, config.max_steps - 1),
        "lr_scheduler_kwargs": {
            "num_decay_steps": max(1, round(config.max_steps * optimizer.decay_fraction)),
            "decay_type": "linear",
        },
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps / longest,
        "max_grad_norm": optimizer.clip_grad / longest,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **setting.more,
    }


def run_trl(
    folder: Path, name: str, config: GRPOConfig, problems: list[Problem], setting: TRLSetting
) -> dict[str, Any]:
    """One run of TRL, in each step on the problems that qedmeg has in it."""
    rows, job, out = folder / f"{name}.jsonl", folder / f"{name}.job.json", folder / f"{name}.json"
    order = in_order(problems, config.data.seed, config.max_steps * config.data.prompts_per_step)
    rows.write_text("".join(json.dumps(problem.to_json()) + "\n" for problem in order))
    files = {"model": str(config.model.hf), "problems": str(rows), "out": str(out)}
    job.write_text(json.dumps(files | {"arguments": trl_arguments(config, setting)}))
    command = [str(trl_python())]
    if setting.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes)]
    done = run(
        [*command, str(HERE / "trl" / "grpo.py"), str(job)], THREADS // setting.processes, folder / f"{name}.log"
    )
    found = json.loads(out.read_text())
    numbers = _numbers(done, found["times"][1:], found["rewards"], found["tokens"], config)
    return numbers | {
        "truncated": statistics.fmean(found["truncated"]),
        "grading_seconds": statistics.fmean(found["grading_seconds"]),
    }


def run_qedmeg(folder: Path, name: str, config: GRPOConfig) -> dict[str, Any]:
    """One run of recipes/grpo.py."""
    settings = [
        f"model.hf={config.model.hf}",
        f"data.train={config.data.train}",
        f"max_steps={config.max_steps}",
        f"checkpoint.save_every={config.max_steps}",
    ]
    steps = train(folder, name, settings)
    numbers = _numbers(steps.run, steps.times, steps.of("reward"), steps.of("response_tokens"), config)
    seconds = {
        name.removeprefix("train/"): statistics.fmean(line[name] for line in steps.metrics[1:])
        for name in steps.metrics[-1]
        if name.startswith("train/time/")
    }
    return numbers | {"truncated": statistics.fmean(steps.of("truncated")), "seconds_of_a_step": seconds}


def _numbers(
    done: Run, times: list[float] | tuple[float, ...], rewards: list[float], tokens: list[float], config: GRPOConfig
) -> dict[str, Any]:
    """`times`: the ends of the steps. The first step, in which both set up, is not counted in the rate."""
    samples = config.data.prompts_per_step * config.data.rollouts_per_prompt
    return {
        "samples_per_second": samples * (len(times) - 1) / (times[-1] - times[0]),
        "seconds_before_first_step_ends": times[0] - done.started,
        "peak_gb": done.peak_bytes / 1e9,
        "answer_tokens": statistics.fmean(tokens),
        "curve": [
            {"minutes": (time - done.started) / 60, "reward": 7 * reward}
            for time, reward in zip(times, rewards, strict=True)
        ],
    }


def main() -> int:
    """Run both sides in turns, print, plot and keep the comparison; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/sft"), help="folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of each run, the first not counted (default: 6)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--curve-steps", type=int, default=60, help="of the run for the curve (default: %(default)s)")
    parser.add_argument("--settings", action="store_true", help="only try TRL's settings, one run of each")
    args = parser.parse_args()
    trl_python()
    folder = Path(tempfile.mkdtemp(prefix="grpo-speed-"))
    try:
        problems = write_problems(folder / "problems.jsonl")
        if args.settings:
            return _try_settings(folder, args, problems)
        return _compare(folder, args, problems)
    finally:
        shutil.rmtree(folder)


def _config(folder: Path, args: argparse.Namespace, steps: int) -> GRPOConfig:
    settings = [f"model.hf={args.model.absolute()}", f"data.train={folder / 'problems.jsonl'}", f"max_steps={steps}"]
    return load_config(GRPOConfig, DEMO_CONFIG, settings)


def _try_settings(folder: Path, args: argparse.Namespace, problems: list[Problem]) -> int:
    """One run of each of TRL's settings; what fails is kept with its last line."""
    config = _config(folder, args, args.steps)
    tried: dict[str, Any] = {}
    for number, (name, setting) in enumerate(TRL_SETTINGS.items()):
        try:
            found = run_trl(folder, f"trl-{number}", config, problems, setting)
            tried[name] = {key: found[key] for key in ("samples_per_second", "peak_gb", "truncated")}
        except SystemExit as error:
            tried[name] = str(error).strip().splitlines()[-1]
        print(f"{name}: {tried[name]}", flush=True)
    _keep({"trl_settings_tried": tried})
    return 0


def _compare(folder: Path, args: argparse.Namespace, problems: list[Problem]) -> int:
    config = _config(folder, args, args.steps)
    runs: dict[str, list[dict[str, Any]]] = {"qedmeg": [], "trl": []}
    rates = []
    for number in range(args.repeats):
        rates.append(gigaflops("fp32", THREADS))
        runs["qedmeg"].append(run_qedmeg(folder, f"qedmeg-{number}", config))
        print(f"qedmeg {number}: {_shown(runs['qedmeg'][-1])}", flush=True)
        rates.append(gigaflops("fp32", THREADS))
        runs["trl"].append(run_trl(folder, f"trl-{number}", config, problems, TRL_SETTINGS[BEST]))
        print(f"trl {number}: {_shown(runs['trl'][-1])}", flush=True)
    config = _config(folder, args, args.curve_steps)
    longer = run_qedmeg(folder, "qedmeg-longer", config)
    curves = {"qedmeg": longer, "trl": run_trl(folder, "trl-longer", config, problems, TRL_SETTINGS[BEST])}
    return _report(args, config, runs, curves, rates)


def _shown(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name != "curve"}


def _report(
    args: argparse.Namespace,
    config: GRPOConfig,
    runs: dict[str, list[dict[str, Any]]],
    curves: dict[str, dict[str, Any]],
    rates: list[float],
) -> int:
    result: dict[str, Any] = {
        "threads": THREADS,
        "runs_of_each": args.repeats,
        "steps_of_a_run": args.steps,
        "samples_of_a_step": config.data.prompts_per_step * config.data.rollouts_per_prompt,
        "max_new_tokens": config.rollout.max_tokens,
        "matrix_gigaflops": {"median": statistics.median(rates), "all": rates},
        "trl_setting": BEST,
    }
    for name, found in runs.items():
        result[name] = {key: spread([run[key] for run in found]) for key in ("samples_per_second", "peak_gb")} | {
            "runs": [_shown(run) for run in found],
            "longer_run": curves[name],
        }
    ratio = result["qedmeg"]["samples_per_second"]["median"] / result["trl"]["samples_per_second"]["median"]
    result |= {"speed_ratio": ratio, "asked": BAR, "reward_after_minutes": _rewards(curves)}
    _keep(result)
    _plot(curves)
    print(json.dumps(result["reward_after_minutes"], indent=1))
    for name in runs:
        print(f"{name}: {result[name]['samples_per_second']['median']:.1f} samples a second")
    print(f"{ratio:.2f} times TRL's; asked: {BAR}")
    return 0 if ratio >= BAR else 1


def _keep(result: dict[str, Any]) -> None:
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(kept | result, indent=1) + "\n")


def _rewards(curves: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Points of 7 after whole minutes, mean of the five steps before, as long as both train."""
    ends = [numbers["curve"][-1]["minutes"] for numbers in curves.values()]
    found: dict[str, dict[str, float]] = {}
    for minutes in range(1, int(min(ends)) + 1):
        for name, numbers in curves.items():
            before = [point["reward"] for point in numbers["curve"] if point["minutes"] <= minutes]
            if before:
                found.setdefault(str(minutes), {})[name] = statistics.fmean(before[-5:])
    return found


def _plot(curves: dict[str, dict[str, Any]]) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, numbers), colour in zip(curves.items(), ("#2563eb", "#9aa4b2"), strict=True):
        minutes = [point["minutes"] for point in numbers["curve"]]
        rewards = [point["reward"] for point in numbers["curve"]]
        smooth = [statistics.fmean(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))]
        axes.plot(minutes, rewards, color=colour, alpha=0.3, lw=1)
        axes.plot(minutes, smooth, color=colour, lw=2, label={"trl": "TRL"}.get(name, name))
    axes.set_xlabel("minutes since the start of the command")
    axes.set_ylabel("points of 7, mean of a step's samples")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PLOT, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
