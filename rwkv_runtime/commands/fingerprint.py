"""`rwkv-runtime fingerprint`: what decides which states a model may use."""

from __future__ import annotations

import click

from rwkv_runtime.commands.options import Model, json_option, model_options
from statestore.cli.render import emit_fields, emit_json


@click.command()
@model_options
@json_option
def fingerprint(model: Model, as_json: bool) -> None:
    """Show the digest that every state of this model carries, and all that goes into it.

    \b
    Example:
      rwkv-runtime fingerprint --model rwkv7-0.1b.pth --dtype bf16
    """
    made = model.engine().fingerprint
    fields = {"digest": made.digest.hex(), **made.to_dict()}
    if as_json:
        emit_json(fields)
    else:
        emit_fields(fields)
