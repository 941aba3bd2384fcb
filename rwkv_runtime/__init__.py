"""Answer from documents that were read once: RWKV over a persistent state store.

>>> from statestore import open_store
>>> from rwkv_runtime import Runtime, load_engine
>>> engine = load_engine("model.pth", dtype="bf16")  # doctest: +SKIP
>>> with open_store("file:///tmp/states") as store, Runtime(engine, store) as runtime:
...     result = runtime.prefill([document_tokens, question_tokens])  # doctest: +SKIP

* `load_engine` loads RWKV-7 weights, `load_package_engine` those of other versions through the
  `rwkv` package; either gives an `Engine`.
* `Runtime` reads prompts over an engine and a store: `prefill` (a `Prefill`), `ask` (an `Answer`
  for each question), `generate` (a `Generated` for each token; `Sampling` and `Stop` say how and
  how far), `warm`, `explain`. An `Admission` says which states are worth keeping.
* `Conversation` is a chat of `Message` objects whose history is found again.
* `tokenizer_for` gives the `Tokenizer` that fits a model's vocabulary.

Many answers at once: `rwkv_runtime.serving.Streams`. Over HTTP: ``rwkv-runtime serve``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_runtime.chat import Message
    from rwkv_runtime.conversation import Conversation
    from rwkv_runtime.engines import Engine, load_engine, load_package_engine
    from rwkv_runtime.generation import Generated, Stop
    from rwkv_runtime.runtime import Answer, Runtime
    from rwkv_runtime.sampling import Sampling
    from rwkv_runtime.session import Admission, Prefill
    from rwkv_runtime.tokenizer import Tokenizer, tokenizer_for

__all__ = [
    "Admission",
    "Answer",
    "Conversation",
    "Engine",
    "Generated",
    "Message",
    "Prefill",
    "Runtime",
    "Sampling",
    "Stop",
    "Tokenizer",
    "load_engine",
    "load_package_engine",
    "tokenizer_for",
]

# Loaded when first asked for: `rwkv-runtime --help`, and a shell's completion, need no torch.
_PLACES = {
    **dict.fromkeys(("Answer", "Runtime"), "runtime"),
    **dict.fromkeys(("Engine", "load_engine", "load_package_engine"), "engines"),
    **dict.fromkeys(("Admission", "Prefill"), "session"),
    **dict.fromkeys(("Generated", "Stop"), "generation"),
    **dict.fromkeys(("Tokenizer", "tokenizer_for"), "tokenizer"),
    "Conversation": "conversation",
    "Message": "chat",
    "Sampling": "sampling",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("rwkv_runtime", "statestore")):
            raise
        message = f"{__name__}.{name} needs {error.name}: pip install 'rwkv-statestore[runtime]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
