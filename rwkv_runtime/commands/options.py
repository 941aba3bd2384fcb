"""What several commands take: a model, a store, a document; and how these are opened."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import rwkv_runtime  # its names are loaded when they are asked for: completion needs none
from rwkv_runtime.commands.progress import progress_bar
from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.names import (
    DEVICES,
    DTYPES,
    KERNELS,
    LOSSY,
    DeviceName,
    DTypeName,
    KernelName,
    Lossy,
)
from statestore.cli.options import CONFIG
from statestore.config import Config
from statestore.errors import SettingsError
from statestore.keys import Namespace
from statestore.settings import URL_VARIABLE, default_url, open_store

if TYPE_CHECKING:
    from rwkv_runtime import Engine, Runtime

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Model:
    """--model, --dtype, --device, --threads, --strategy, --initial-state, --lossy, --kernel."""

    path: Path
    dtype: DTypeName
    device: DeviceName
    threads: int | None
    strategy: str | None = None
    initial: Path | None = None
    lossy: Lossy | None = None
    kernel: KernelName = "torch"

    def engine(self) -> Engine:
        """Load the weights, with a bar while they are hashed."""
        with progress_bar("hashing the weights", unit="B") as hashed:
            if self.strategy is not None:
                if self.kernel != "torch":
                    raise SettingsError(
                        f"--strategy computes with the rwkv package, and --kernel {self.kernel} "
                        "does not; give one of them"
                    )
                return rwkv_runtime.load_package_engine(
                    self.path,
                    self.strategy,
                    threads=self.threads,
                    initial=self.initial,
                    lossy=self.lossy,
                    progress=hashed,
                )
            return rwkv_runtime.load_engine(
                self.path,
                dtype=self.dtype,
                device=self.device,
                threads=self.threads,
                initial=self.initial,
                lossy=self.lossy,
                kernel=self.kernel,
                progress=hashed,
            )


@dataclass(frozen=True, slots=True)
class Opening:
    """A model together with --store, --tokenizer, --namespace and --access-log."""

    model: Model
    url: str | None
    tokenizer: str | None
    namespace: str
    salt: bytes = field(default=b"", repr=False)
    access_log: Path | None = None

    @contextmanager
    def runtime(self) -> Iterator[Runtime]:
        """A runtime over model and store; both are closed at the end, after what was computed is
        stored.
        """
        namespace = Namespace(self.namespace, self.salt)
        engine = self.model.engine()
        tokenizer = rwkv_runtime.tokenizer_for(engine.vocabulary, self.tokenizer)
        with (
            open_store(self.url or default_url()) as store,
            rwkv_runtime.Runtime(
                engine,
                store,
                namespace=namespace,
                tokenizer=tokenizer,
                model=self.model.path.name,
                access_log=self.access_log,
            ) as runtime,
        ):
            runtime.warm_up()
            yield runtime


#: Names the weights that ship with this package, wherever weights are asked for.
DEMO = "demo"


class WeightsPath(click.Path):
    """A path, or "demo"."""

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The demo's weights for its name."""
        return MODEL_PATH if value == DEMO else super().convert(str(value), param, ctx)


_MODEL = (
    click.option(
        "--model",
        required=True,
        type=WeightsPath(),
        help="RWKV-7 weights: .pth, .safetensors, or a directory as Hugging Face has it; or "
        '"demo", the small model that ships with this package. With --strategy a .pth of any '
        "version.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="fp32",
        show_default=True,
        help="What the model computes in.",
    ),
    click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="CPU threads of the engine; PyTorch's own number by default.",
    ),
    click.option(
        "--strategy",
        help="Compute with the rwkv package, which runs versions 4 to 7: 'cpu fp32', "
        "'cuda fp16i8 *10 -> cpu fp32'. Replaces --dtype and --device.",
    ),
    click.option(
        "--initial-state",
        "initial",
        type=click.Path(path_type=Path),
        help="A state-tuned file (time_state) to begin from.",
    ),
    click.option(
        "--lossy",
        type=click.Choice(LOSSY),
        help="Round states at each chunk end and keep only that: smaller, and less exact.",
    ),
    click.option(
        "--kernel",
        type=click.Choice(KERNELS),
        default="torch",
        show_default=True,
        help="What computes tokens: PyTorch, or C compiled on this machine, which is faster "
        "and needs a C compiler. Each has states of its own.",
    ),
)
_STORE = (
    click.option(
        "--store",
        "url",
        metavar="URL",
        help="Where states are kept; a directory means file://. By default "
        f"${URL_VARIABLE}, else a directory among the user's application data.",
    ),
    click.option(
        "--tokenizer",
        type=click.Choice(("bytes", "world")),
        help="By default the one that fits the model's vocabulary.",
    ),
    click.option("--namespace", default="default", show_default=True, help="Whose states."),
    click.option(
        "--access-log",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Append a line for each prompt, without its text, for `statestore simulate`.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def model_options(command: Command) -> Command:
    """Add the options of `Model`, passed on as the first argument."""

    @functools.wraps(command)
    def run(
        model: Path,
        dtype: DTypeName,
        device: DeviceName,
        threads: int | None,
        strategy: str | None,
        initial: Path | None,
        lossy: Lossy | None,
        kernel: KernelName,
        **rest: object,
    ) -> object:
        chosen = Model(model, dtype, device, threads, strategy, initial, lossy, kernel)
        return command(chosen, **rest)

    return _with(_MODEL, run)


def runtime_options(command: Command) -> Command:
    """Add the options of `Opening`, passed on as the first argument."""

    @functools.wraps(command)
    def run(
        model: Model,
        url: str | None,
        tokenizer: str | None,
        namespace: str,
        access_log: Path | None,
        **rest: object,
    ) -> object:
        settings: Config = click.get_current_context().meta.get(CONFIG) or Config()
        salt = settings.store.salt(namespace)
        return command(Opening(model, url, tokenizer, namespace, salt, access_log), **rest)

    return model_options(_with(_STORE, run))


def read_text(path: Path) -> str:
    """A text file's content; ``-`` is standard input.

    Raises:
        click.BadParameter: it cannot be read, or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return content.decode()
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.BadParameter(
            f"{path}: byte {error.start} is not UTF-8; convert the file first"
        ) from error


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    return functools.reduce(lambda inner, option: option(inner), reversed(options), command)
