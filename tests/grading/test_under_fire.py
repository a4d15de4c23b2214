"""A short run of the grader campaign (`tests/grader_campaign.py`), and proof that it would see what goes wrong."""

from dataclasses import replace
from decimal import Decimal

import pytest

from qedmeg.grading.grade import Cost, Graded
from tests.grader_campaign import Campaign, account_errors, report, run, wrong_grades


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return run(count=150, share=0.4, seed=3, folder=tmp_path_factory.mktemp("campaign"))


def test_no_grade_is_wrong_or_lost_and_the_accounts_agree(campaign: Campaign) -> None:
    result = report(campaign)
    assert (result["wrong"], result["lost"], result["account_errors"]) == ([], 0, [])
    assert result["passed"], result["served"]
    assert 0.3 < result["failed_share"] < 0.5


def test_a_wrong_grade_would_be_seen(campaign: Campaign) -> None:
    first = campaign.grades[0]
    assert isinstance(first, Graded)
    wrong = replace(first, points=first.points + 1)
    assert len(wrong_grades(replace(campaign, grades=(wrong, *campaign.grades[1:])))) == 1


def test_an_account_that_is_off_would_be_seen(campaign: Campaign) -> None:
    ledger, other = campaign.ledgers
    more = replace(ledger, cost=ledger.cost + Cost(0, 1, 0, Decimal("1.5e-7")))
    assert account_errors(replace(campaign, ledgers=(more, other)))
    assert account_errors(replace(campaign, ledgers=(replace(ledger, retries=ledger.retries + 1), other)))
    assert account_errors(replace(campaign, ledgers=(replace(ledger, entries=ledger.entries[1:]), other)))
    known = next(entry for entry in ledger.entries if entry.tokens_known)
    entries = [replace(entry, tokens_known=False) if entry is known else entry for entry in ledger.entries]
    assert account_errors(replace(campaign, ledgers=(replace(ledger, entries=entries), other)))
