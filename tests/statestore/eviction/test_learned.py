"""The policy that learns: what it makes of chats, of documents, and of traffic that changes."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.entry import MEMO_BYTES, Entry, Role
from statestore.eviction import POLICIES, make_policy
from statestore.eviction.learned import Learned
from statestore.eviction.trials import Trial
from statestore.eviction.waiting import MOVED, MOVED_BEFORE
from statestore.keys import StateKey
from statestore.simulate import Request, make_admission, replay, replay_clairvoyant
from statestore.simulate.replay import an_entry as an_entry_of
from statestore.simulate.workers import WorkersPolicy
from tests.places.backend_places import digest

BLOCK = 512
NOW = 1_700_000_000.0


def a_prefix(*blocks: int) -> tuple[StateKey, ...]:
    """The keys along a prompt of these blocks."""
    return tuple(
        StateKey(digest(str(blocks[: place + 1])), (place + 1) * BLOCK)
        for place in range(len(blocks))
    )


def ask(at: float, *blocks: int) -> Request:
    return Request(at, len(blocks) * BLOCK + 7, a_prefix(*blocks))


def chats(seed: int, begin: float = 0.0, users: int = 400) -> list[Request]:
    """Users who ask up to six times, a minute or so apart, and others who ask once."""
    dice = random.Random(seed)
    fresh = iter(range(seed * 10**6, (seed + 1) * 10**6))
    requests: list[Request] = []
    for _ in range(users):
        at = begin + dice.uniform(0, 2000)
        blocks = [next(fresh) for _ in range(dice.randrange(2, 30))]
        for _ in range(dice.choice([1, 1, 1, 4, 6])):
            requests.append(ask(at, *blocks))
            at += dice.lognormvariate(4, 0.7)
            blocks = [*blocks, *(next(fresh) for _ in range(dice.randrange(1, 3)))]
    return sorted(requests, key=lambda request: request.time_s)


def documents(seed: int, begin: float = 0.0, scan: float = 0.3) -> list[Request]:
    """Questions about popular documents among prompts that never come again."""
    dice = random.Random(seed)
    fresh = iter(range(seed * 10**6 + 10**5, (seed + 1) * 10**6))
    lengths = [dice.randrange(4, 60) for _ in range(300)]
    requests: list[Request] = []
    for number in range(1500):
        if dice.random() < scan:
            blocks = [next(fresh) for _ in range(dice.randrange(4, 60))]
        else:
            which = min(int(dice.paretovariate(0.6)) - 1, 299)
            blocks = [seed * 10**6 + which * 100 + place for place in range(lengths[which])]
            blocks += [next(fresh)]
        requests.append(ask(begin + number, *blocks))
    return requests


def share(requests: list[Request], policy: str, budget: int) -> float:
    return replay(requests, make_policy(policy), make_admission(), budget).hit_token_share


@pytest.mark.parametrize("budget", [30, 100])
@pytest.mark.parametrize("traffic", [chats, documents])
def test_it_is_ahead_of_age_and_of_guesses(traffic: object, budget: int) -> None:
    requests = [request for seed in range(2) for request in traffic(seed, 2500.0 * seed)]
    learned = share(requests, "learned", budget)
    assert learned > share(requests, "lru", budget)
    assert learned > share(requests, "gdsf", budget) - 0.003


def test_it_follows_traffic_that_changes() -> None:
    """Chats, then documents, then chats: each part as well as a policy that saw nothing else."""
    parts = [chats(1), documents(2, 3000.0), chats(3, 6000.0)]
    whole = replay([r for part in parts for r in part], make_policy(), make_admission(), 60)
    alone = sum(
        replay(part, make_policy(), make_admission(), 60).total.hit_tokens for part in parts
    )
    assert whole.total.hit_tokens > 0.9 * alone


def of_others(requests: list[Request], later_s: float) -> list[Request]:
    """The same traffic again, of users with other texts."""
    return [
        Request(
            request.time_s + later_s,
            request.n_tokens,
            tuple(StateKey(bytes(b ^ 255 for b in k.digest), k.n_tokens) for k in request.keys),
        )
        for request in requests
    ]


def faster(requests: list[Request], times: float) -> list[Request]:
    return [replace(request, time_s=request.time_s / times) for request in requests]


@pytest.mark.parametrize("times", [0.1, 10.0])
@pytest.mark.parametrize("traffic", [chats, documents])
def test_the_clock_is_nothing_to_tune_to(traffic: object, times: float) -> None:
    """Ten times as slow or as fast: no worse than guesses, and nearly what it was."""
    requests = traffic(5)
    warped = faster(requests, times)
    found = share(warped, "learned", 60)
    assert found > share(warped, "gdsf", 60) - 0.003
    assert found > 0.9 * share(requests, "learned", 60)


def test_the_load_may_shift() -> None:
    """Four times the traffic for a while, then as before: no worse than guesses in any part."""
    calm, busy = chats(6), faster(chats(7, users=800), 2.0)
    parts = [calm, [replace(r, time_s=r.time_s + 2500.0) for r in busy], of_others(calm, 4000.0)]
    whole = sorted((r for part in parts for r in part), key=lambda r: r.time_s)
    assert share(whole, "learned", 60) > share(whole, "gdsf", 60) - 0.003
    assert share(whole, "learned", 60) > share(whole, "lru", 60)


@pytest.mark.parametrize("traffic", [chats, documents])
def test_who_knows_the_future_finds_more(traffic: object) -> None:
    requests = traffic(8)[:800]
    best = replay_clairvoyant(requests, make_admission(), 40).hit_token_share
    assert all(best >= share(requests, policy, 40) for policy in POLICIES)


def test_an_end_that_was_continued_is_given_up() -> None:
    """In chats the next turn has what the last one had; nobody comes back to that."""
    policy = Learned()
    for request in chats(4):
        prompts = request.keys[::-1]
        policy.seen(prompts, None, NOW + request.time_s)
        policy.put(an_entry_of(prompts[0], Role.PROMPT, 0, NOW), NOW - 100, NOW + request.time_s)
    later = NOW + 4000.0
    for _ in range(120):  # to know of all that they waited until then
        policy.rank([], later)
    age = later - 100.0
    first, second = a_prefix(*range(20)), a_prefix(*range(21))
    end = an_entry_of(first[-1], Role.PROMPT, 0, later)
    before = policy.put(end, age, later).score - age
    policy.seen(second[::-1], end, later)
    after = policy.hit(end, age, later).score - age
    child = an_entry_of(second[-1], Role.PROMPT, first[-1].n_tokens, later)
    newer = policy.put(child, age, later).score - age
    assert after < before / 20
    # It spares one block beyond the first end, and is worth them all: that one will not stay.
    assert newer > before
    used = replace(end, used_at=later, hits=1, memo=policy.hit(end, age, later).memo or "")
    new = replace(end, used_at=later, memo=Learned().put(end, age, later).memo or "")
    low, high = policy.rank([used, new], later + 30.0)
    assert low < high / 10


def test_the_same_prompt_looked_up_twice_is_one_use() -> None:
    policy = Learned()
    end = an_entry_of(a_prefix(1, 2)[-1], Role.PROMPT, 0, NOW)
    policy.put(end, 0.0, NOW)
    longer = a_prefix(1, 2, 3)[::-1]
    for after_s in (10.0, 10.1, 12.0):
        policy.seen(longer, end, NOW + after_s)
    assert policy._trials[end.key.digest].hits == 1


def test_lookups_of_a_place_that_holds_nothing_and_of_no_keys() -> None:
    policy = Learned()
    policy.seen([], None, NOW)
    policy.seen(a_prefix(1, 2)[::-1], None, NOW)
    assert policy.put(an_entry_of(a_prefix(1, 2)[-1], Role.PROMPT, 0, NOW), 0.0, NOW).score > 0


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.eviction.learned.TRIALS", 64)
    policy = Learned()
    for number in range(1000):
        keys = a_prefix(number, number)
        policy.seen(keys[::-1], None, NOW + number)
        policy.seen(a_prefix(-number - 1)[::-1], None, NOW + number)
        policy.put(an_entry_of(keys[-1], Role.PROMPT, 0, NOW + number), 0.0, NOW + number)
    assert len(policy._trials) <= 64
    assert len(policy._prompts) <= 8
    assert len(policy._waiting) <= 256  # a trial that is forgotten waits for the next step of age
    strangers = [an_entry_of(a_prefix(-n, 1)[-1], Role.PROMPT, 0, NOW + 1000) for n in range(1000)]
    policy.rank(strangers, NOW + 1001)
    assert len(policy._strangers) == 64


def test_threads_share_it() -> None:
    policy = Learned()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for request in chats(seed, users=60):
                policy.seen(request.keys[::-1], None, NOW + request.time_s)
                end = an_entry_of(request.keys[-1], Role.PROMPT, 0, NOW)
                policy.put(end, NOW - 50, NOW + request.time_s)
                policy.hit(end, NOW - 50, NOW + request.time_s)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_fork_while_it_is_at_work() -> None:
    """The child must not wait for a lock that a thread of its parent held."""
    policy = Learned()
    end = an_entry_of(a_prefix(1)[-1], Role.PROMPT, 0, NOW)
    with policy._mine():
        child = os.fork()
        if child == 0:
            policy.put(end, 0.0, NOW)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def million() -> Learned:
    """A policy that has met more states than it remembers, all within a second."""
    policy = Learned()
    for number in range(70_000):
        key = StateKey(number.to_bytes(32, "big"), 512 * (1 + number % 40))
        policy.put(an_entry_of(key, Role.PROMPT, 0, NOW), NOW - 100, NOW + number / 1e5)
    return policy


def test_it_costs_less_than_a_millisecond(million: Learned) -> None:
    """The middle one of many: a lookup of 128 keys, a hit, two puts."""
    spent = []
    for number in range(200):
        keys = a_prefix(*([number] * 128))
        entries = [an_entry_of(key, Role.PROMPT, 0, NOW) for key in keys[-2:]]
        at = NOW + 8000.0 + number
        began = time.perf_counter()
        million.seen(keys[::-1], None, at)
        for entry in entries:
            million.put(entry, at - 100, at)
        million.hit(entries[0], at - 100, at)
        spent.append(time.perf_counter() - began)
    assert sorted(spent)[100] < 0.005  # 0.5 ms on a quiet machine, while it catches up on hours


def test_no_request_pays_for_all_that_waited(million: Learned) -> None:
    """The first that comes after a night moves a few of the 65,536 on, the next ones others."""
    young = million._waiting._by_step[0]
    waiting = len(young)
    assert waiting > 65_000
    for number in range(3):
        keys = a_prefix(number)
        million.seen(keys, None, NOW + 50_000.0)
        waiting -= MOVED_BEFORE
        assert len(young) == waiting
        million.put(an_entry_of(keys[-1], Role.PROMPT, 0, NOW + 50_000.0), NOW, NOW + 50_000.0)
        waiting -= MOVED - 1  # and its own begins
        assert len(young) == waiting


# What is written beside an entry


def shared_by(workers: int, requests: list[Request], budget: int, seed: int = 1) -> float:
    policy = WorkersPolicy("learned", workers, seed)
    return replay(requests, policy, make_admission(), budget).hit_token_share


@pytest.mark.parametrize("traffic", [chats, documents])
def test_many_workers_are_ahead_of_guesses(traffic: object) -> None:
    """Though each sees an eighth of two thousand requests; a longer trace: `test_simulate`."""
    requests = [request for seed in range(2) for request in traffic(seed, 2500.0 * seed)]
    assert shared_by(8, requests, 60) > share(requests, "gdsf", 60) + 0.005


def test_another_process_goes_on_from_the_memo() -> None:
    """One sees a chat's first turn, the other its second: both know what becomes of the first."""
    first, second = a_prefix(*range(20)), a_prefix(*range(21))
    one, other, alone = Learned(), Learned(), Learned()
    end = an_entry_of(first[-1], Role.PROMPT, 0, NOW)
    for policy in (one, alone):
        policy.seen(first[::-1], None, NOW)
    put = one.put(end, 0.0, NOW)
    assert alone.put(end, 0.0, NOW) == put
    stored = replace(end, memo=put.memo or "")
    for policy in (other, alone):
        policy.seen(second[::-1], stored, NOW + 50)
    hit = other.hit(stored, 0.0, NOW + 51)
    assert hit.memo == alone.hit(stored, 0.0, NOW + 51).memo
    assert hit.memo is not None
    assert hit.memo.startswith("1 c 1 0 ")
    longer = an_entry_of(second[-1], Role.PROMPT, first[-1].n_tokens, NOW + 51)
    assert other.put(longer, 0.0, NOW + 51).memo == alone.put(longer, 0.0, NOW + 51).memo
    # The first one hears of it as soon as it meets the entry again, and its own trial is over.
    used = replace(stored, memo=hit.memo, hits=1, used_at=NOW + 51)
    one.seen(second[::-1], used, NOW + 60)
    again = one.hit(used, 0.0, NOW + 61)
    assert again.memo is not None
    assert again.memo.startswith("1 c 2 0 ")


@pytest.mark.parametrize(
    "memo",
    [
        "",
        "1",
        "1 c 3 2 512",
        "2 c 3 2 512 1024",
        "1 x 3 2 512 1024",
        "1 c -3 2 512 1024",
        "1 c 3 2 512 1e3",
        "1 c 3 2 512 " + "9" * 16,
        "1 c 3 2 512 1024 ",
        "1 c ٣ 2 512 1024",
    ],
)
def test_a_memo_that_is_none(memo: str) -> None:
    end = an_entry_of(a_prefix(1, 2)[-1], Role.PROMPT, 0, NOW)
    odd = replace(end, memo=memo)
    for keys in (a_prefix(1, 2), a_prefix(1, 2, 3)):
        verdicts = []
        for entry in (end, odd):
            policy = Learned()
            policy.seen(keys[::-1], entry, NOW + 5)
            verdicts.append(policy.hit(entry, 0.0, NOW + 5))
        assert verdicts[0] == verdicts[1]


@given(
    use=st.sampled_from("nacbp"),
    numbers=st.tuples(*[st.integers(0, 10**15 - 1)] * 4),
    age=st.floats(-1e12, 1e12),
)
def test_any_memo_gives_a_score_and_a_memo(use: str, numbers: tuple[int, ...], age: float) -> None:
    key = a_prefix(1, 2)[-1]
    memo = " ".join(["1", use, *map(str, numbers)])
    entry = replace(an_entry_of(key, Role.PROMPT, 0, NOW), memo=memo)
    assert Trial.of(entry, NOW).memo() == memo
    policy = Learned()
    policy.seen([key], entry, NOW + 5)
    for verdict in (policy.hit(entry, age, NOW + 5), policy.put(entry, age, NOW + 5)):
        assert math.isfinite(verdict.score)
        assert len(verdict.memo or "") <= MEMO_BYTES


# What is judged when room is needed


def test_the_order_of_a_sample_is_nothing_to_it() -> None:
    policy, dice = Learned(), random.Random(3)
    entries = [
        replace(
            an_entry_of(a_prefix(number)[-1], Role.PROMPT, 0, NOW - 10.0 * number),
            blob_bytes=1 + number % 3,
            ancestor_tokens=number % 5,
        )
        for number in range(40)
    ]
    ranks = dict(zip(entries_of(entries), policy.rank(entries, NOW), strict=True))
    dice.shuffle(entries)
    assert dict(zip(entries_of(entries), policy.rank(entries, NOW), strict=True)) == ranks
    assert policy.rank([], NOW) == []


def entries_of(entries: list[Entry]) -> list[StateKey]:
    return [entry.key for entry in entries]


def test_a_fresh_process_ranks_an_old_store_sensibly() -> None:
    """Nothing was learnt yet: what spares more per byte and was used later stays."""
    policy = Learned()
    end = an_entry_of(a_prefix(*range(20))[-1], Role.PROMPT, 0, NOW - 100)
    larger = replace(end, blob_bytes=2)
    older = replace(end, used_at=NOW - 1000)
    nearer = replace(end, ancestor_tokens=end.key.n_tokens - 512)
    by_end, *others = policy.rank([end, larger, older, nearer], NOW)
    assert all(0.0 < other < by_end for other in others)


def test_samples_tell_what_others_serve() -> None:
    """A process without requests of its own learns which kinds are used from what it sees stored:
    of two kinds, the one whose entries were used again between two looks.
    """
    policy = Learned()
    for number in range(300):
        at = NOW + 100.0 * number
        again, idle = (
            replace(an_entry_of(a_prefix(side, number)[-1], role, 0, at), memo="1 n 0 0 512 1024")
            for side, role in ((1, Role.PROMPT), (2, Role.SEGMENT))
        )
        policy.rank([again, idle], at + 10.0)
        used = replace(again, used_at=at + 20.0, hits=1, memo="1 a 1 0 512 1024")
        policy.rank([used, idle], at + 50.0)
    end = NOW + 50_000.0
    fresh = [
        replace(an_entry_of(a_prefix(3)[-1], role, 0, end - 15.0), memo="1 n 0 0 512 1024")
        for role in (Role.PROMPT, Role.SEGMENT)
    ]
    often, never = policy.rank(fresh, end)
    assert often > 10 * never


def test_an_own_use_is_no_strangers() -> None:
    """What this process put and used is not taken for another's, though the touch comes later."""
    policy = Learned()
    end = an_entry_of(a_prefix(1, 2)[-1], Role.PROMPT, 0, NOW)
    stored = replace(end, memo=policy.put(end, 0.0, NOW).memo or "", used_at=NOW + 0.4)
    policy.rank([stored], NOW + 1)
    policy.seen(a_prefix(1, 2, 3)[::-1], stored, NOW + 5)
    memo = policy.hit(stored, 0.0, NOW + 6).memo or ""
    policy.rank([replace(stored, used_at=NOW + 6, hits=1, memo=memo)], NOW + 7)
    assert len(policy._strangers) == 0
    elsewhere = replace(stored, used_at=NOW + 9, hits=2, memo="1 a 2 0 512 1024")
    policy.rank([elsewhere], NOW + 10)
    assert len(policy._strangers) == 1


def test_a_roomy_store_gives_way_when_traffic_changes() -> None:
    """Documents that were popular give way to chats: nothing that was promised once stays."""
    before, after = documents(2, scan=0.0), chats(3, 1600.0, users=800)
    whole = replay(before + after, make_policy(), make_admission(), 300).total.hit_tokens
    alone = replay(after, make_policy(), make_admission(), 300).total.hit_tokens
    first = replay(before, make_policy(), make_admission(), 300).total.hit_tokens
    assert whole - first > 0.95 * alone
