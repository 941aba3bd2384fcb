"""Redis and PostgreSQL: memory and what happens when it is full, clocks, connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from statestore.cli.checkup.finding import Finding
from statestore.cli.plain import redis_client
from statestore.cli.premises import Premises
from statestore.cli.render import size
from statestore.errors import UnavailableError
from statestore.settings import open_revisions

_SKEW_S: Final = 2.0  # beyond that, expiries and ages look wrong to people
_FULL_SHARE: Final = 0.9
_BUSY_SHARE: Final = 0.8


def redis_findings(place: Premises, budget_bytes: int | None) -> Iterator[Finding]:
    """What there is to say of every node."""
    from redis.exceptions import NoPermissionError, RedisError

    client = redis_client(place)
    try:
        nodes = _nodes(client)
        for name, node in nodes.items():
            yield from _node_findings(name if len(nodes) > 1 else "the server", node, budget_bytes)
    except NoPermissionError as error:  # a store needs nothing of what is asked here
        yield Finding.doubtful(
            "server",
            f"clock, memory and policy were not looked at: {error}",
            "ACL SETUSER with +info +time; or have them looked at by another user",
        )
    except (RedisError, OSError) as error:
        yield Finding.bad("server", UnavailableError(f"{place.url}: {error}"))
    finally:
        client.close()


def _nodes(client: Any) -> dict[str, Any]:  # noqa: ANN401 - redis-py's clients share no type
    if not hasattr(client, "get_primaries"):
        return {"": client}
    return {node.name: client.get_redis_connection(node) for node in client.get_primaries()}


def _node_findings(name: str, node: Any, budget_bytes: int | None) -> Iterator[Finding]:  # noqa: ANN401 - as above
    info = node.info()
    before = time.time()
    seconds, microseconds = node.time()
    yield _clock(name, seconds + microseconds / 1e6, (before + time.time()) / 2)
    if info.get("role") == "slave":
        yield Finding.doubtful(
            "server", f"{name} is a replica: puts are refused", "name the primary, or its Sentinel"
        )
    yield _memory(name, info, budget_bytes)
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        yield Finding.doubtful(
            "policy",
            f"{name} drops entries and parts of states as it likes ({policy})",
            "CONFIG SET maxmemory-policy noeviction, and give the URL a budget=",
            maxmemory_policy=policy,
        )
    else:
        yield Finding.good(
            "policy", f"{name} drops nothing by itself ({policy})", maxmemory_policy=policy
        )


def _memory(name: str, info: dict[str, Any], budget_bytes: int | None) -> Finding:
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    facts = {"used_bytes": used, "maxmemory_bytes": most}
    if most == 0:
        remedy = "CONFIG SET maxmemory, below the machine's own"
        remedy += "; and give the URL a budget=" if budget_bytes is None else ""
        return Finding.doubtful(
            "memory", f"{name} uses {size(used)}, and has no maxmemory", remedy, **facts
        )
    text = f"{name} uses {size(used)} of {size(most)}"
    if used > _FULL_SHARE * most:
        return Finding.doubtful("memory", text, "lower the budget, or raise maxmemory", **facts)
    if budget_bytes is not None and budget_bytes > _FULL_SHARE * most:
        remedy = f"lower the budget of {size(budget_bytes)} to {size(int(0.8 * most))}"
        return Finding.doubtful(
            "memory", f"{text}: it is full before the budget is", remedy, **facts
        )
    return Finding.good("memory", text, **facts)


def postgres_findings(place: Premises) -> Iterator[Finding]:
    """What there is to say of the server."""
    with open_revisions(place.url.text) as revisions:
        before = time.time()
        theirs, open_now, most = revisions.database.read(
            lambda tx: tuple(tx.exec_driver_sql(_ASKED).one())
        )
        yield _clock("the server", float(theirs), (before + time.time()) / 2)
    text = f"{open_now} of {most} connections are open"
    if int(open_now) > _BUSY_SHARE * int(most):
        remedy = "raise max_connections: a worker keeps up to 9 open"
        yield Finding.doubtful("connections", text, remedy, open=open_now, most=most)
    else:
        yield Finding.good("connections", text, open=open_now, most=most)


_ASKED: Final = (
    "SELECT extract(epoch FROM clock_timestamp())::float8, "
    "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
    "current_setting('max_connections')::int"
)


def _clock(name: str, theirs: float, ours: float) -> Finding:
    skew_s = theirs - ours
    if abs(skew_s) <= _SKEW_S:
        return Finding.good("clock", f"{name}'s clock and this machine's agree", seconds=skew_s)
    side = "ahead of" if skew_s > 0 else "behind"
    return Finding.doubtful(
        "clock",
        f"{name}'s clock is {abs(skew_s):,.0f} s {side} this machine's",
        "let NTP set both: a ttl counts by the hosts' clocks",
        seconds=skew_s,
    )
