"""Policies: what goes before what, on one axis of time, whatever is measured in which unit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.entry import Entry, Role
from statestore.errors import SettingsError
from statestore.eviction import DEFAULT, POLICIES, Policy, make_policy
from statestore.eviction.policy import WORTH_LIMIT, score
from tests.places.backend_places import CREATED_AT, a_key, an_entry

NOW = CREATED_AT + 50_000.0
AGE = NOW - 600.0  # what was evicted last had lain for ten minutes

every_policy = pytest.mark.parametrize("name", POLICIES)


def entry(n_tokens: int = 1024, **fields: object) -> Entry:
    return an_entry(0, key=replace(a_key(0), n_tokens=n_tokens), **fields)


def warmed(name: str) -> Policy:
    """A policy that has seen some puts: 1024 tokens more in 1000 bytes."""
    policy = make_policy(name)
    for _ in range(50):
        policy.put(entry(), AGE, NOW)
    return policy


def test_the_default_is_one_of_them() -> None:
    assert make_policy().name == DEFAULT
    assert [make_policy(name).name for name in POLICIES] == list(POLICIES)


def test_an_unknown_name() -> None:
    with pytest.raises(SettingsError, match="'fifo' is not known; one of learned, gdsf, lfu, lru"):
        make_policy("fifo")


def test_lru_is_the_moment_of_use() -> None:
    policy = make_policy("lru")
    assert policy.put(entry(), AGE, NOW).score == NOW
    assert policy.hit(entry(), AGE, NOW + 7).score == NOW + 7


@pytest.mark.parametrize("name", ["lfu", "gdsf"])
def test_more_uses_are_worth_more(name: str) -> None:
    policy = warmed(name)
    scores = [policy.hit(entry(hits=hits), AGE, NOW).score for hits in range(5)]
    assert scores == sorted(set(scores))
    assert scores[0] > policy.put(entry(), AGE, NOW).score


def test_gdsf_counts_what_a_hit_spares_per_byte() -> None:
    policy = warmed("gdsf")
    common = policy.put(entry(), AGE, NOW).score
    assert policy.put(entry(2048), AGE, NOW).score > common
    assert policy.put(entry(1024, ancestor_tokens=512), AGE, NOW).score < common
    assert policy.put(entry(1024, blob_bytes=500), AGE, NOW).score > common
    # The whole prefix is not what is spared.
    near = policy.put(entry(100_000, ancestor_tokens=99_900), AGE, NOW).score
    assert near < common


@every_policy
def test_a_common_entry_is_scored_as_by_last_use(name: str) -> None:
    """So entries that were scored by another policy, or by none, leave in their turn."""
    assert warmed(name).put(entry(), AGE, NOW).score == pytest.approx(NOW, abs=60)


@every_policy
def test_a_newcomer_outlives_what_was_worth_most_long_ago(name: str) -> None:
    """Nothing stays for ever: not with a thousand hits, not with a million tokens."""
    policy = warmed(name)
    best = policy.hit(entry(10**6, hits=1000), AGE, NOW).score
    later = NOW + 1.01 * WORTH_LIMIT * 600
    assert policy.put(entry(), later - 600, later).score > best


@every_policy
def test_a_stop_along_the_way_goes_first_until_somebody_came_back_to_it(name: str) -> None:
    policy = warmed(name)
    stop = entry(10**6, role=Role.SPARSE)
    first = policy.put(stop, AGE, NOW).score
    assert first < policy.put(stop, AGE, NOW + 1).score
    assert (
        policy.put(entry(), AGE, NOW).score == warmed(name).put(entry(), AGE, NOW).score
    )  # not in the mean
    worst = policy.put(entry(1, ancestor_tokens=0, blob_bytes=10**9), AGE, NOW).score
    assert first < worst < policy.hit(stop, AGE, NOW + 1).score


@every_policy
@pytest.mark.parametrize("factor", [1, 34_600])
def test_units_do_not_matter(name: str, factor: int) -> None:
    """A model with larger states, and a clock that began elsewhere, give the same order."""
    policy, other = make_policy(name), make_policy(name)
    shift = 12_345.0
    for tokens in (700, 300, 900, 20):
        small, large = entry(tokens), entry(tokens, blob_bytes=1000 * factor)
        plain = policy.put(small, AGE, NOW).score
        assert other.put(large, AGE + shift, NOW + shift).score == pytest.approx(plain + shift)


@every_policy
@given(
    age=st.floats(-1e12, 1e12),
    now=st.floats(0, 1e11),
    tokens=st.integers(0, 2**62),
    ancestor=st.integers(0, 2**62),
    size=st.integers(0, 2**62),
    hits=st.integers(0, 2**62),
    role=st.sampled_from(Role),
)
def test_any_entry_has_a_score(
    name: str, age: float, now: float, tokens: int, ancestor: int, size: int, hits: int, role: Role
) -> None:
    """Whatever a damaged catalog or a clock that went back makes of the numbers."""
    policy = make_policy(name)
    odd = entry(tokens, ancestor_tokens=ancestor, blob_bytes=size, hits=hits, role=role)
    for given_score in (policy.put(odd, age, now).score, policy.hit(odd, age, now).score):
        assert math.isfinite(given_score)
    assert math.isfinite(policy.put(entry(), age, now).score)


def test_before_anything_was_evicted_worth_counts_as_well() -> None:
    assert score(2.0, 0.0, NOW) > score(1.0, 0.0, NOW) == NOW > score(0.5, 0.0, NOW)


@every_policy
def test_newcomers_begin_at_an_age_ahead_of_the_clock(name: str) -> None:
    """What is left lies above it. By the clock, newcomers would go first until it catches up."""
    policy, age = warmed(name), NOW + 10 * 86_400
    first = policy.put(entry(), age, NOW).score
    assert first > age
    assert policy.hit(entry(), age, NOW + 1).score >= first
    assert policy.put(entry(), first, NOW + 2).score > first  # once that one has gone


def test_worth_counts_beyond_an_age_ahead_of_the_clock() -> None:
    age = NOW + 100
    assert score(3.0, age, NOW) > score(1.0, age, NOW) > score(0.5, age, NOW) > age
