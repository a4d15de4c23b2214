"""The demo's report: one HTML file with the loss, the score of each rubric item, and proofs with their grades."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from qedmeg.demo.scores import Score, said
from qedmeg.evaluation.compare import Comparison
from qedmeg.evaluation.summary import Summary
from qedmeg.monitor.page import COLOURS, GREY, STYLE, svg, write_page

SHOWN_PROOFS = 12
_COLOURS = {"base": GREY, "sft": COLOURS[0], "grpo": COLOURS[1], "notes": COLOURS[3], "rc": COLOURS[2]}
_FINE_TUNED = ("sft", "notes")


def write_report(
    path: Path,
    scores: Mapping[str, Score],
    trainings: Mapping[str, Sequence[dict[str, float]]],
    rounds: Mapping[str, Sequence[Summary]],
    comparisons: Sequence[Comparison],
) -> None:
    """Write the report of the models' scores (in their order) and of the metrics of their trainings; with the reasoning
    cache, of the scores by round. Proofs are shown as text, whatever they hold."""
    last = list(scores.values())[-1]
    proofs = list(last.proofs)
    random.Random(0).shuffle(proofs)
    fine_tuned = {name: lines for name, lines in trainings.items() if name in _FINE_TUNED}
    reinforced = {name: lines for name, lines in trainings.items() if name not in _FINE_TUNED}
    write_page(
        path,
        "qedmeg.demo",
        "demo.html.jinja",
        title="qedmeg demo",
        scores=scores,
        loss=_curve(fine_tuned, "train/loss", "loss (nats a token)", "log"),
        reward=_curve(reinforced, "train/reward", "reward (share of 7 points)", "linear"),
        rounds=_round_plot(rounds, scores["grpo"].sampled) if rounds else None,
        comparisons=[said(one) for one in comparisons],
        changes=_changes(scores["sft"].by_item, last.by_item),
        items=_item_plot(scores),
        last=list(scores)[-1],
        proofs=sorted(proofs[:SHOWN_PROOFS], key=lambda proof: proof.grade.points),
    )


@matplotlib.rc_context(STYLE)
def _curve(trainings: Mapping[str, Sequence[dict[str, float]]], metric: str, label: str, scale: str) -> Markup:
    """A metric over the steps."""
    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    for name, lines in trainings.items():
        told = [line for line in lines if metric in line]
        axes.plot(
            [line["step"] for line in told], [line[metric] for line in told], color=_COLOURS[name], lw=1, label=name
        )
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_yscale(scale)
    if len(trainings) > 1:
        axes.legend(fontsize=8)
    return svg(figure)


@matplotlib.rc_context(STYLE)
def _round_plot(rounds: Mapping[str, Sequence[Summary]], single: Summary) -> Markup:
    """Scores with the reasoning cache by round and by the tokens that they took, beside GRPO's model asked once."""
    figure = Figure((8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, one in rounds.items():
        means = [each.whole.mean or 0.0 for each in one]
        ends = [each.whole.interval for each in one]
        errors = [
            [mean - end.low if end else 0.0 for mean, end in zip(means, ends, strict=True)],
            [end.high - mean if end else 0.0 for mean, end in zip(means, ends, strict=True)],
        ]
        style = {"color": _COLOURS[name], "marker": "o", "ms": 4, "lw": 1.2, "capsize": 2, "elinewidth": 0.8}
        left.errorbar(range(1, 1 + len(means)), means, errors, label=name, **style)
        tokens = [each.whole.cost.tokens_per_problem or 0.0 for each in one]
        right.errorbar(tokens, means, errors, label=name, **style)
    right.axhline(single.whole.mean or 0.0, color=_COLOURS["grpo"], ls=":", lw=1, label="grpo, asked once")
    left.set(xlabel="round", ylabel="points of 7")
    left.set_xticks(range(1, 1 + max(len(one) for one in rounds.values())))
    right.set_xlabel("tokens a problem")
    right.legend(fontsize=7, loc="lower right")
    return svg(figure)


CHANGED = 0.05
"""Of an item's points: what counts as a change, about two standard errors of its mean over the held-out proofs."""


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, list[str]]:
    """Which rubric items rose, fell or stayed, sampled: from reinforcement learning's start to its end."""
    changes: dict[str, list[str]] = {"rose": [], "fell": [], "stayed": []}
    for name, share in before.items():
        difference = after.get(name, 0.0) - share
        kind = "stayed" if abs(difference) < CHANGED else "rose" if difference > 0 else "fell"
        changes[kind].append(f"{name} ({difference:+.2f})")
    return changes


@matplotlib.rc_context(STYLE)
def _item_plot(scores: Mapping[str, Score]) -> Markup:
    """Share of its points that each rubric item earned, sampled at temperature 1."""
    names = list(next(iter(scores.values())).by_item)[::-1]
    figure = Figure((7, 0.19 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(scores)
    for number, (stage, score) in enumerate(scores.items()):
        shares = [score.by_item.get(name, 0.0) for name in names]
        offsets = [row + 0.4 - height * (number + 0.5) for row in range(len(names))]
        axes.barh(offsets, shares, height=height, color=_COLOURS[stage], label=stage)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("share of the item's points")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(visible=False, axis="y")
    return svg(figure)
