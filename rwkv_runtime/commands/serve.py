"""`rwkv-runtime serve`: the OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from rwkv_runtime.chat import NAMES
from rwkv_runtime.commands.options import DEMO, Model, Opening, WeightsPath, runtime_options
from rwkv_runtime.demo import MODEL_PATH
from statestore.cli.options import CONFIG
from statestore.config import Config, ServerSettings
from statestore.errors import SettingsError
from statestore.keys import Namespace
from statestore.settings import default_url
from statestore.url import redacted

_DEFAULTS = ServerSettings()
_OPTIONS = (
    click.option("--host", default=_DEFAULTS.host, show_default=True, help="Where to listen."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=_DEFAULTS.port,
        show_default=True,
        help="0 takes any that is free.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes; by default one for every two cores. They share the weights' memory.",
    ),
    click.option(
        "--streams",
        type=click.IntRange(min=1),
        default=_DEFAULTS.streams,
        show_default=True,
        help="Answers that a worker writes side by side: 8, 16, 32, 64 or 128.",
    ),
    click.option(
        "--readers",
        type=click.IntRange(min=1),
        default=_DEFAULTS.readers,
        show_default=True,
        help="Prompts that a worker reads side by side, and documents.",
    ),
    click.option(
        "--queue",
        type=click.IntRange(min=1),
        default=_DEFAULTS.queue,
        show_default=True,
        help="Requests that wait in a worker; more are refused with 429.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=_DEFAULTS.max_tokens,
        show_default=True,
        help="The longest answer that may be asked for.",
    ),
    click.option(
        "--max-body-bytes",
        type=click.IntRange(min=1),
        default=_DEFAULTS.max_body_bytes,
        show_default=True,
        help="The largest request.",
    ),
    click.option(
        "--max-document-bytes",
        type=click.IntRange(min=1),
        default=_DEFAULTS.max_document_bytes,
        show_default=True,
        help="The largest document.",
    ),
    click.option(
        "--max-documents-bytes",
        type=click.IntRange(min=1),
        default=_DEFAULTS.max_documents_bytes,
        show_default=True,
        help="Token ids of all documents of a namespace, four bytes each.",
    ),
    click.option(
        "--chat-template",
        type=click.Choice(NAMES),
        default=_DEFAULTS.chat_template,
        show_default=True,
        help="How messages are written for the model; auto goes by its tokenizer.",
    ),
    click.option(
        "--api-keys",
        type=click.Path(path_type=Path),
        help="A TOML file of API keys and their namespaces. Without one everybody is let in.",
    ),
    click.option(
        "--shutdown-s",
        type=click.FloatRange(min=0),
        default=_DEFAULTS.shutdown_s,
        show_default=True,
        help="Seconds that streams have to end after SIGTERM or Ctrl-C.",
    ),
)


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("weights", required=False, type=WeightsPath())
@runtime_options
@_server_options
@click.option("--quiet", is_flag=True, help="No line for each request.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    opening: Opening,
    weights: Path | None,
    quiet: bool,
    **given: Any,  # noqa: ANN401 - as the settings' fields have it
) -> None:
    """Serve a model to OpenAI's clients: completions, chat, documents that are read once.

    WEIGHTS is a file as for --model, or "demo", the default: the small model that ships with this
    package. A page to try it lies at the server's address. A line for each request goes to stderr,
    without any text. Ctrl-C and SIGTERM let streams end first; a second one does not.

    Each worker listens on the same port, and whatever one has read is warm in all: they share the
    store. Without API keys the server is this machine's alone, unless --host says otherwise.

    \b
    Examples:
      rwkv-runtime serve
      rwkv-runtime serve rwkv7-g1-1.5b.pth --dtype bf16 --workers 2 --store redis://cache
      rwkv-runtime serve --host 0.0.0.0 --api-keys keys.toml
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
          -d '{"model": "demo", "messages": [{"role": "user", "content": "Who are you?"}]}'

    \b
    keys.toml:
      [[keys]]
      sha256 = "..."            # of the key: printf %s KEY | sha256sum
      namespace = "alice"
      salt = "a long random text"
    """
    _log_to_stderr(quiet=quiet)
    settings: Config = ctx.meta.get(CONFIG) or Config()
    server = replace(settings.server, **given)
    workers = server.workers or max(1, _cores() // 2)
    model = _chosen(opening.model, weights)
    if model.threads is None:
        model = replace(model, threads=max(1, _cores() // workers))
    ctx.exit(_launched(settings, server, workers, replace(opening, model=model)))


def _launched(settings: Config, server: ServerSettings, workers: int, opening: Opening) -> int:
    """Only this command loads a web server."""
    try:
        module = import_module("rwkv_runtime.server.launch")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("rwkv_runtime", "statestore")):
            raise
        raise SettingsError(
            f"serve needs {error.name}: pip install 'rwkv-statestore[server]'"
        ) from None
    model, url = opening.model, opening.url or default_url()
    name = DEMO if model.path == MODEL_PATH else model.path.stem
    many = "a worker" if workers == 1 else f"{workers} workers"
    served = module.Served(
        weights=model.path,
        model_name=name,
        load=model.engine,
        shared=model.device == "cpu" and model.strategy is None,
        store_url=url,
        namespace=Namespace(opening.namespace, opening.salt),
        salts=settings.store.salts,
        tokenizer=opening.tokenizer,
        access_log=opening.access_log,
    )
    code: int = module.launch(
        server,
        workers,
        served,
        lambda address: click.echo(
            f"Serving {name} at {address.url} ({many}, states in {redacted(url)})"
        ),
    )
    return code


def _chosen(model: Model, weights: Path | None) -> Model:
    """`weights` rather than --model, and the demo's weights rather than none."""
    path: Path | None = model.path if weights is None else weights
    return replace(model, path=MODEL_PATH if path is None else path)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _log_to_stderr(*, quiet: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")
    for ours in ("rwkv_runtime", "statestore"):
        logging.getLogger(ours).setLevel(logging.INFO)
    if quiet:
        logging.getLogger("rwkv_runtime.server.requests").setLevel(logging.WARNING)


for parameter in serve.params:
    if parameter.name == "model":  # here the demo's weights are the default
        parameter.required = False
