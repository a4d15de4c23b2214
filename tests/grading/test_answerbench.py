"""All answers of IMO-AnswerBench, where the file is: right against themselves, never right against another's."""

import asyncio
from pathlib import Path

import pytest

from tests.benchmarks.answerbench_answers import measure

DATA = Path(__file__).parents[3] / "shared" / "data" / "imobench" / "answerbench_v2.csv"


@pytest.mark.skipif(not DATA.exists(), reason="the answers of IMO-AnswerBench are not there")
def test_every_answer_is_its_own_and_no_other() -> None:
    found = asyncio.run(measure(str(DATA)))
    assert found["own"]["counts"] == {"right": 400}
    assert "right" not in found["other"]["counts"]
    assert found["other"]["counts"]["undecided"] <= 60
