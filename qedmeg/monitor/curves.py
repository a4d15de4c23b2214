"""A run's numbers as small plots: curves, the time budget of a step, and what each rubric item earned."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from qedmeg.monitor.budget import IDLE, in_order
from qedmeg.monitor.page import COLOURS, GREY, STYLE, svg

WIDTH, HEIGHT = 3.6, 1.9  # inches: as wide as a telephone at 96 pixels an inch, so that its text is not scaled down
MOST_POINTS = 400
FEW_POINTS = 12
"""Of a curve with no more, each is marked."""
MOST_CELLS = 60
ROUNDS_SHOWN = 8
"""Rounds of the reasoning cache in one plot; later ones get plots of their own."""
_ITEM, _TIME, _VALIDATION = "train/item/", "train/time/", "validation/"


@dataclass(frozen=True)
class Panel:
    """A plot of one or several metrics, by the name of each in the legend."""

    title: str
    metrics: dict[str, str]
    log: bool = False
    share: bool = False
    """From 0 to 1."""
    bands: tuple[tuple[str, str, str], ...] = ()
    """Around curves: the curve's name in the legend, and the metrics of the lower and of the upper bound."""


PANELS = (
    Panel("Reward", {"mean": "train/reward", "standard deviation": "train/reward_std"}, share=True),
    Panel(
        "Validation score, of 7 (band: 95 % of problems, dark: 95 % repeated)",
        {"sampled": f"{_VALIDATION}score", "greedy": f"{_VALIDATION}greedy"},
        bands=(
            ("sampled", f"{_VALIDATION}score_low", f"{_VALIDATION}score_high"),
            ("sampled", f"{_VALIDATION}score_repeated_low", f"{_VALIDATION}score_repeated_high"),
            ("greedy", f"{_VALIDATION}greedy_low", f"{_VALIDATION}greedy_high"),
        ),
    ),
    Panel(
        "Validation: what is in no score",
        {"grades failed": f"{_VALIDATION}failed_grades", "attempts missing": f"{_VALIDATION}missing"},
    ),
    Panel("Validation: tokens of an attempt", {"mean": f"{_VALIDATION}tokens"}),
    Panel("Validation: share of attempts cut off", {"cut off": f"{_VALIDATION}cut_off"}, share=True),
    Panel(
        "Reward by round of the state",
        {f"round {round}": f"train/reward_by_round/{round}" for round in range(1, ROUNDS_SHOWN + 1)},
        share=True,
    ),
    Panel(
        "Groups by round of the state",
        {f"round {round}": f"train/groups_by_round/{round}" for round in range(1, ROUNDS_SHOWN + 1)},
    ),
    Panel("What a summary improves", {"mean": "train/improvement", "standard deviation": "train/improvement_std"}),
    Panel("Age of states, in weight versions", {"mean": "train/state_age_mean", "greatest": "train/state_age_max"}),
    Panel("States too old for a group", {"dropped": "train/states_too_old"}, share=True),
    Panel(
        "Share of a chain's turns cut off",
        {"reasoning": "train/reason_truncated", "summaries": "train/summarise_truncated"},
        share=True,
    ),
    Panel("Loss", {"training": "train/loss", "validation": "val/loss"}),
    Panel("Tokens of an answer", {"mean": "train/response_tokens", "longest": "train/response_tokens_max"}),
    Panel("Share of answers cut off", {"cut off": "train/truncated"}, share=True),
    Panel("Lag, in weight versions", {"mean": "train/lag_mean", "greatest": "train/lag_max"}),
    Panel(
        "Log-probabilities, trainer against engine",
        {"mean": "train/mismatch", "greatest": "train/mismatch_max", "KL": "train/mismatch_kl", "gate": "train/gate"},
        log=True,
    ),
    Panel(
        "Share of tokens clipped",
        {
            "below": "train/clipped_low",
            "above": "train/clipped_high",
            "dual": "train/clipped_dual",
            "correction capped": "train/correction_capped",
        },
    ),
    Panel("KL from the reference", {"KL": "train/reference_kl"}),
    Panel("Entropy of a token, in nats", {"entropy": "train/entropy"}),
    Panel("Gradient norm", {"norm": "train/grad_norm"}, log=True),
    Panel("Learning rate", {"rate": "train/lr"}),
    Panel("Grades that failed", {"failures": "train/grades_failed"}),
    Panel("Cost of a step's grades", {"money": "train/grader_money"}),
    Panel("Tokens of a step's grades", {"tokens": "train/grader_tokens"}),
    Panel(
        "Groups left out",
        {
            "same rewards": "train/groups_dropped/zero variance",
            "too old": "train/groups_dropped/too old",
            "too few grades": "train/groups_dropped/too few grades",
        },
    ),
    Panel("Tokens of a step", {"all": "train/tokens", "trained on": "train/trained_tokens"}),
    Panel("Tokens a second", {"tokens/s": "train/tokens_per_second"}),
    Panel("Seconds of a step", {"seconds": "train/step_time"}),
    Panel("Bytes of a weight transfer", {"bytes": "train/transfer_bytes"}),
)


@dataclass(frozen=True, eq=False)
class Series:
    """One metric: its values and the steps they are of."""

    steps_N: npt.NDArray[np.float64]
    values_N: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """A plot for the page, with its legend: name, colour and last value of each curve."""

    title: str
    legend: tuple[tuple[str, str, str], ...]
    svg: Markup


@dataclass(frozen=True)
class ItemRow:
    """What one rubric item earned: shares of its points."""

    name: str
    cells: tuple[tuple[float, float, str], ...]
    """Place and width, as shares of the run's steps, and colour."""
    first: float
    """In the first fifth of the steps."""
    last: float
    """In the last fifth."""


def series_of(metrics: Iterable[dict[str, float]]) -> dict[str, Series]:
    """The series by metric; what is no number of a step is left out."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in metrics:
        step = line.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                found[name].append((step, value))
    return {name: Series(*np.asarray(sorted(points), dtype=np.float64).T) for name, points in found.items()}


def plots(series: dict[str, Series]) -> list[Plot]:
    """The curves of all metrics but items and times. One that no panel names has a plot of its own."""
    named = {metric for panel in PANELS for metric in panel.metrics.values()}
    named |= {bound for panel in PANELS for _, *bounds in panel.bands for bound in bounds}
    others = [name for name in series if name not in named and not name.startswith((_ITEM, _TIME))]
    panels = [*PANELS, *(Panel(name, {"value": name}) for name in sorted(others))]
    return [_curves(panel, series) for panel in panels if any(name in series for name in panel.metrics.values())]


@matplotlib.rc_context(STYLE)
def _curves(panel: Panel, series: dict[str, Series]) -> Plot:
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    legend = []
    lowest, highest = math.inf, 0.0  # of what a logarithmic axis can show
    for colour, (label, name) in zip(COLOURS, panel.metrics.items(), strict=False):
        if name in series:
            steps_N, values_N = _thin(series[name], MOST_POINTS)
            positive_N = values_N[(values_N > 0) & np.isfinite(values_N)]
            lowest, highest = positive_N.min(initial=lowest), positive_N.max(initial=highest)
            axes.plot(steps_N, values_N, color=colour, marker="o" if len(steps_N) <= FEW_POINTS else "", markersize=3)
            for low, high in _bands(panel, label, series):
                axes.fill_between(low.steps_N, low.values_N, high.values_N, color=colour, alpha=0.15, linewidth=0)
            legend.append((label, colour, number(float(series[name].values_N[-1]))))
    if panel.log and highest > 0:
        axes.set_yscale("log", nonpositive="mask")
        if highest < 100 * lowest:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif panel.share:
        axes.set_ylim(-0.02, 1.02)
    _of_steps(axes)
    return Plot(panel.title, tuple(legend), svg(figure))


def _bands(panel: Panel, label: str, series: dict[str, Series]) -> list[tuple[Series, Series]]:
    """The bounds around a curve, of the steps that have both."""
    found = []
    for of, *names in panel.bands:
        if of == label and all(name in series for name in names):
            low, high = (series[name] for name in names)
            if np.array_equal(low.steps_N, high.steps_N):
                found.append((low, high))
    return found


@matplotlib.rc_context(STYLE)
def time_budget(series: dict[str, Series]) -> Plot | None:
    """The seconds of a step by what they were spent on, stacked; None where the run tells none."""
    times = {name.removeprefix(_TIME): one for name, one in series.items() if name.startswith(_TIME)}
    if not times:
        return None
    phases = in_order(times)
    steps_N = np.unique(np.concatenate([one.steps_N for one in times.values()]))
    stacked_PN = np.zeros((len(phases), len(steps_N)))
    for row, phase in enumerate(phases):
        stacked_PN[row, np.searchsorted(steps_N, times[phase].steps_N)] = np.nan_to_num(times[phase].values_N)
    whole = float(stacked_PN.sum()) or 1.0
    colours = [GREY if phase == IDLE else COLOURS[row % len(COLOURS)] for row, phase in enumerate(phases)]
    legend = tuple(
        (phase, colour, f"{100 * float(row_N.sum()) / whole:.0f} %")
        for phase, colour, row_N in zip(phases, colours, stacked_PN, strict=True)
    )
    thin = [_thin(Series(steps_N, row_N), MOST_POINTS) for row_N in stacked_PN]
    if len(steps_N) == 1:  # an area of one step has no width
        thin = [(np.asarray([steps_N[0] - 0.5, steps_N[0] + 0.5]), np.repeat(row_N, 2)) for _, row_N in thin]
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(thin[0][0], [row_N for _, row_N in thin], colors=colours, linewidth=0)
    axes.set_ylabel("seconds")
    _of_steps(axes)
    return Plot("Where the time of a step goes", legend, svg(figure))


def item_rows(series: dict[str, Series]) -> list[ItemRow]:
    """What each rubric item earned over the steps, by name."""
    items = {name.removeprefix(_ITEM): one for name, one in series.items() if name.startswith(_ITEM)}
    if not items:
        return []
    first = min(float(one.steps_N[0]) for one in items.values())
    steps = max(float(one.steps_N[-1]) for one in items.values()) - first + 1
    cells = min(MOST_CELLS, int(steps))
    rows = []
    for name, one in sorted(items.items()):
        place_N = np.minimum((one.steps_N - first) / steps * cells, cells - 1).astype(int)
        means = {int(cell): float(one.values_N[place_N == cell].mean()) for cell in np.unique(place_N)}
        colours = tuple((cell / cells, 1 / cells, heat(share)) for cell, share in means.items())
        rows.append(ItemRow(name, colours, *first_and_last(one)))
    return rows


def first_and_last(series: Series) -> tuple[float, float]:
    """The means of the first and of the last fifth of the values."""
    part = max(1, len(series.values_N) // 5)
    return float(series.values_N[:part].mean()), float(series.values_N[-part:].mean())


def heat(share: float) -> str:
    """The colour of a share from 0, pale, to 1, dark."""
    share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    pale, dark = (219, 234, 254), (23, 37, 84)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in zip(pale, dark, strict=True))


def number(value: float) -> str:
    """The value in a few characters."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _thin(series: Series, most: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """At most so many points, each the mean of those it stands for."""
    if len(series.steps_N) <= most:
        return series.steps_N, series.values_N
    starts = np.linspace(0, len(series.steps_N), most, endpoint=False).astype(int)
    sizes = np.diff([*starts, len(series.steps_N)])
    return np.add.reduceat(series.steps_N, starts) / sizes, np.add.reduceat(series.values_N, starts) / sizes


def _of_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)
