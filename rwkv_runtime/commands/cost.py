"""What an answer cost before its first word, for people."""

from __future__ import annotations

import click


def show_cost(cached_tokens: int, computed_tokens: int, ttft_s: float) -> None:
    """One line beneath the answer."""
    click.secho(
        f"  {cached_tokens} tokens from the store, {computed_tokens} computed, "
        f"first token after {ttft_s * 1e3:.0f} ms",
        dim=True,
    )
