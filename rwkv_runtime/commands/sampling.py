"""How commands that write choose tokens: their options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

import rwkv_runtime  # its names are loaded when they are asked for

Command = Callable[..., Any]

_OPTIONS = (
    click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True
    ),
    click.option("--top-k", type=click.IntRange(min=0), default=0, help="0 admits every token."),
    click.option(
        "--min-p",
        type=click.FloatRange(0, 1),
        default=0.0,
        help="Leaves out tokens with less than this share of the likeliest one's probability.",
    ),
    click.option(
        "--presence-penalty", type=float, default=0.0, help="Off a token that came before."
    ),
    click.option(
        "--frequency-penalty", type=float, default=0.0, help="Times how often it came."
    ),
    click.option(
        "--penalty-decay",
        type=click.FloatRange(0, 1),
        default=1.0,
        help="What is left of each count, token by token; RWKV's demos use 0.996.",
    ),
    click.option("--seed", type=int, help="Makes a sampled text repeatable; -1 does not."),
)  # fmt: skip


def sampling_options(command: Command) -> Command:
    """Add the options of `Sampling`, passed on as ``sampling``."""

    @functools.wraps(command)
    def run(
        *arguments: object,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        presence_penalty: float,
        frequency_penalty: float,
        penalty_decay: float,
        seed: int | None,
        **rest: object,
    ) -> object:
        sampling = rwkv_runtime.Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_decay=penalty_decay,
            seed=seed,
        )
        return command(*arguments, sampling=sampling, **rest)

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), run)
