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
_COLOURS = {"base": GREY, "sft": COLOURS[0]}


def write_report(path: Path, evaluations: dict[str, dict[str, Any]], metrics: Sequence[dict[str, float]]) -> None:
    """Write the report of the evaluations (by stage) and the training metrics. Proofs are shown as text, whatever
    they hold."""
    proofs = list(evaluations["sft"]["proofs"])
    random.Random(0).shuffle(proofs)
    write_page(
        path,
        "qedmeg.demo",
        "demo.html.jinja",
        title="qedmeg demo",
        evaluations=evaluations,
        loss=_loss_plot(metrics),
        items=_item_plot(evaluations),
        proofs=sorted(proofs[:SHOWN_PROOFS], key=lambda proof: proof["points"]),
    )


@matplotlib.rc_context(STYLE)
def _loss_plot(metrics: Sequence[dict[str, float]]) -> Markup:
    steps = [line for line in metrics if "train/loss" in line]
    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in steps], [line["train/loss"] for line in steps], color=_COLOURS["sft"], lw=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_yscale("log")
    return svg(figure)


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
