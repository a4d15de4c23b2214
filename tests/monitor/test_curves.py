"""A run's numbers as plots: long runs are thinned, odd ones drawn, items and times told by their own."""

import math
from html.parser import HTMLParser

import numpy as np
import pytest

from qedmeg.monitor import curves


def lines(steps: int, **metrics: float) -> list[dict[str, float]]:
    return [{"step": step, **{f"train/{name}": value for name, value in metrics.items()}} for step in range(steps)]


def test_series_leave_out_what_is_no_number_of_a_step() -> None:
    series = curves.series_of([{"step": 3, "a": 1.0, "b": "x"}, {"a": 2.0}, {"step": 1, "a": math.nan}])  # type: ignore[dict-item]
    assert list(series) == ["a"]
    np.testing.assert_array_equal(series["a"].steps_N, [1, 3])
    np.testing.assert_array_equal(series["a"].values_N, [math.nan, 1.0])


def test_what_is_absent_is_not_plotted() -> None:
    plots = curves.plots(curves.series_of(lines(3, reward=0.5, lag_mean=0.0, odd=1.0)))
    assert [plot.title for plot in plots] == ["Reward", "Lag, in weight versions", "train/odd"]
    assert [label for label, _, _ in plots[0].legend] == ["mean"]


def test_the_score_of_validations_has_the_bands_of_its_bounds() -> None:
    steps = [0, 20, 40]
    bounded = [
        {"step": step, "train/reward": 0.5, "validation/score": 4.0, "validation/score_low": 3.0, **more}
        for step, more in zip(steps, [{"validation/score_high": 5.0}] * 3, strict=True)
    ]
    reward, score = curves.plots(curves.series_of(bounded))
    assert (reward.title, score.title.partition(",")[0]) == ("Reward", "Validation score")
    assert [(label, last) for label, _, last in score.legend] == [("sampled", "4")]
    bands = [svg.count("fill-opacity: 0.15") for svg in (str(score.svg), str(reward.svg))]
    assert bands[0] > bands[1] == 0
    (alone,) = curves.plots(curves.series_of([{"step": 0, "validation/score": 4.0, "validation/score_low": 3.0}]))
    assert "fill-opacity: 0.15" not in alone.svg


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-300, 1e300])
def test_odd_values_are_drawn(value: float) -> None:
    (plot,) = curves.plots(curves.series_of(lines(3, mismatch=value)))
    assert "</svg>" in plot.svg


def test_a_long_run_is_thinned_to_means() -> None:
    series = curves.series_of([{"step": step, "train/loss": float(step % 2)} for step in range(20_000)])
    steps_N, values_N = curves._thin(series["train/loss"], 400)
    assert len(steps_N) == 400
    np.testing.assert_allclose(values_N, 0.5)
    assert steps_N[0] == pytest.approx(24.5)
    assert len(curves.plots(series)[0].svg) < 60_000


def test_the_time_budget_tells_shares_in_the_order_of_a_step() -> None:
    metrics = lines(2, **{"time/idle": 1.0, "time/train": 2.0, "time/generate": 5.0})
    budget = curves.time_budget(curves.series_of([*metrics, {"step": 2, "train/time/grade": 4.0}]))
    assert budget is not None
    assert [(name, share) for name, _, share in budget.legend] == [
        ("generate", "50 %"),
        ("grade", "20 %"),
        ("train", "20 %"),
        ("idle", "10 %"),
    ]
    assert curves.time_budget(curves.series_of(lines(2, loss=1.0))) is None
    assert curves.time_budget(curves.series_of(lines(1, **{"time/train": 1.0}))) is not None


def test_items_have_a_cell_for_each_part_of_the_run_that_graded_them() -> None:
    metrics = lines(10, **{"item/b / end": 1.0})
    metrics += [{"step": step, "train/item/a / start": step / 9} for step in (0, 9)]
    first, second = curves.item_rows(curves.series_of(metrics))
    assert (first.name, first.first, first.last) == ("a / start", 0.0, 1.0)
    assert [(round(x, 3), width, colour) for x, width, colour in first.cells] == [
        (0.0, 0.1, curves.heat(0.0)),
        (0.9, 0.1, curves.heat(1.0)),
    ]
    assert len(second.cells) == 10
    assert len(curves.item_rows(curves.series_of(lines(1000, **{"item/a": 1.0})))[0].cells) == curves.MOST_CELLS


def test_first_and_last_fifth() -> None:
    series = curves.series_of([{"step": step, "a": float(step)} for step in range(10)])["a"]
    assert curves.first_and_last(series) == (0.5, 8.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.4321, "0.432"),
        (2.1e-6, "2.1e-6"),
        (1234.5, "1,234"),
        (5e8, "5e8"),
        (12.0, "12"),
        (math.nan, "nan"),
    ],
)
def test_numbers_in_a_few_characters(value: float, text: str) -> None:
    assert curves.number(value) == text


def test_text_in_a_plot_is_text() -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from qedmeg.monitor.page import STYLE, svg

    class Tags(HTMLParser):
        found: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.found.add(tag)

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        figure.subplots().set_title("$\\frac{$ </text><script>x</script> --> ]]>")
        drawn = svg(figure)
    parser = Tags()
    parser.feed(drawn)
    assert "script" not in parser.found
    assert "&lt;script&gt;" in drawn


def test_rewards_by_round_of_the_reasoning_cache_are_curves_of_one_plot() -> None:
    logged = {f"reward_by_round/{round}": 0.1 * round for round in (1, 2, 4)}
    (plot,) = curves.plots(curves.series_of(lines(3, **logged)))
    assert plot.title == "Reward by round of the state"
    told = [(name, last) for name, _, last in plot.legend]
    assert told == [("round 1", "0.1"), ("round 2", "0.2"), ("round 4", "0.4")]
