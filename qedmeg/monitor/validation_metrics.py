"""What is logged of a validation: pure functions from its statistics to numbers by name."""

from qedmeg.evaluation.summary import Summary
from qedmeg.monitor.metrics import GREEDY, SCORE


def validation_metrics(sampled: Summary, greedy: Summary | None = None) -> dict[str, float]:
    """The scores in points of 7, with the bounds of both intervals where there are enough problems and attempts for
    them, what is in no score, and the tokens of an attempt. A score that nothing was graded for is left out."""
    runs = {SCORE: sampled} | ({GREEDY: greedy} if greedy is not None else {})
    metrics: dict[str, float] = {}
    for name, run in runs.items():
        whole = run.whole
        if whole.mean is not None:
            metrics[name] = whole.mean
        for kind, interval in (("", whole.interval), ("_repeated", whole.repeat_interval)):
            if interval is not None:
                metrics |= {f"{name}{kind}_low": interval.low, f"{name}{kind}_high": interval.high}
    groups = [run.whole for run in runs.values()]
    metrics |= {
        "problems": float(sampled.whole.problems),
        "graded": float(sum(group.graded for group in groups)),
        "failed_grades": float(sum(sum(group.failed.values()) for group in groups)),
        "missing": float(sum(group.missing for group in groups)),
    }
    if sampled.whole.cost.tokens_per_problem is not None:
        attempts = sum(sampled.ended.values())
        metrics |= {
            "tokens": sampled.whole.cost.tokens_per_problem,
            "cut_off": sampled.ended.get("length", 0) / attempts,
        }
    return metrics
