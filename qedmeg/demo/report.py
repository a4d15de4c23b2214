"""The demo's report: one HTML file with the loss, the score of each rubric item, and proofs with their grades."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

SHOWN_PROOFS = 12
_COLOURS = {"base": "#9aa4b2", "sft": "#2563eb"}


def write_report(path: Path, evaluations: dict[str, dict[str, Any]], metrics: Sequence[dict[str, float]]) -> None:
    """Write the report of the evaluations (by stage) and the training metrics. Proofs are shown as text, whatever
    they hold."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qedmeg.demo"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    proofs = list(evaluations["sft"]["proofs"])
    random.Random(0).shuffle(proofs)
    proofs = sorted(proofs[:SHOWN_PROOFS], key=lambda proof: proof["points"])
    page = environment.get_template("report.html.jinja").render(
        evaluations=evaluations, loss=_loss_plot(metrics), items=_item_plot(evaluations), proofs=proofs
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _loss_plot(metrics: Sequence[dict[str, float]]) -> str:
    steps = [line for line in metrics if "train/loss" in line]
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot([line["step"] for line in steps], [line["train/loss"] for line in steps], color=_COLOURS["sft"], lw=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    return _svg(figure)


def _item_plot(evaluations: dict[str, dict[str, Any]]) -> str:
    """Share of its points that each rubric item earned, sampled at temperature 1."""
    names = list(next(iter(evaluations.values()))["by_item"])[::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.19 * len(names) + 1))
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
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)
