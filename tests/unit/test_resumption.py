"""Workers that do not agree are refused before they can spoil a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.resumption import RefusedError, check_alike
from tests.conftest import MakeSpec
from worker.replica import Facts, NumericsChangedError, Replica


@pytest.fixture
def facts(make_spec: MakeSpec) -> Facts:
    return Replica.load(make_spec(data={"synthetic": {"samples": 50}}), capacity=1).facts


def test_equal_workers_agree(facts: Facts) -> None:
    check_alike(facts, facts, allow_different_numerics=False)


def test_other_data_is_refused(facts: Facts) -> None:
    other = replace(facts, origin=replace(facts.origin, data_sha256="other"))
    with pytest.raises(RefusedError, match="data: got sha256 other on one node and"):
        check_alike(other, facts, allow_different_numerics=True)


def test_other_numerics_are_refused_unless_they_are_allowed(facts: Facts) -> None:
    fingerprint = {**facts.origin.fingerprint, "blas": "another"}
    other = replace(facts, origin=replace(facts.origin, fingerprint=fingerprint))
    with pytest.raises(NumericsChangedError, match="do not compute the same bits: blas is another, was "):
        check_alike(other, facts, allow_different_numerics=False)
    check_alike(other, facts, allow_different_numerics=True)
