"""The demo's report: one HTML file with the loss, the score of each rubric item, and proofs with their grades."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from qedmeg.monitor.page import COLOURS, GREY, STYLE, svg, write_page

SHOWN_PROOFS = 12
_COLOURS = {"base": GREY, "sft": COLOURS[0], "grpo": COLOURS[1]}


def write_report(
    path: Path,
    evaluations: dict[str, dict[str, Any]],
    fine_tuning: Sequence[dict[str, float]],
    reinforcement: Sequence[dict[str, float]],
) -> None:
    """Write the report of the evaluations (by stage, in their order) and the metrics of both trainings. Proofs are
    shown as text, whatever they hold."""
    last = list(evaluations.values())[-1]
    proofs = list(last["proofs"])
    random.Random(0).shuffle(proofs)
    write_page(
        path,
        "qedmeg.demo",
        "demo.html.jinja",
        title="qedmeg demo",
        evaluations=evaluations,
        loss=_curve(fine_tuning, "train/loss", "loss (nats a token)", _COLOURS["sft"], "log"),
        reward=_curve(reinforcement, "train/reward", "reward (share of 7 points)", _COLOURS["grpo"], "linear"),
        changes=_changes(evaluations["sft"]["by_item"], last["by_item"]),
        items=_item_plot(evaluations),
        proofs=sorted(proofs[:SHOWN_PROOFS], key=lambda proof: proof["points"]),
    )


@matplotlib.rc_context(STYLE)
def _curve(metrics: Sequence[dict[str, float]], name: str, label: str, colour: str, scale: str) -> Markup:
    """A metric over the steps."""
    lines = [line for line in metrics if name in line]
    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line[name] for line in lines], color=colour, lw=1)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_yscale(scale)
    return svg(figure)


CHANGED = 0.05
"""Of an item's points: what counts as a change, about two standard errors of its mean over the held-out proofs."""


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """Which rubric items rose, fell or stayed, sampled: from reinforcement learning's start to its end."""
    changes: dict[str, list[str]] = {"rose": [], "fell": [], "stayed": []}
    for name, (share, _) in before.items():
        difference = after.get(name, (0.0, 0.0))[0] - share
        kind = "stayed" if abs(difference) < CHANGED else "rose" if difference > 0 else "fell"
        changes[kind].append(f"{name} ({difference:+.2f})")
    return changes


@matplotlib.rc_context(STYLE)
def _item_plot(evaluations: dict[str, dict[str, Any]]) -> Markup:
    """Share of its points that each rubric item earned, sampled at temperature 1."""
    names = list(next(iter(evaluations.values()))["by_item"])[::-1]
    figure = Figure((7, 0.19 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(evaluations)
    for number, (stage, evaluation) in enumerate(evaluations.items()):
        shares = [evaluation["by_item"].get(name, (0.0, 0.0))[0] for name in names]
        offsets = [row + 0.4 - height * (number + 0.5) for row in range(len(names))]
        axes.barh(offsets, shares, height=height, color=_COLOURS[stage], label=stage)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("share of the item's points")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(visible=False, axis="y")
    return svg(figure)
