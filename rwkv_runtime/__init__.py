"""Answer from documents that were read once: RWKV over a persistent state store.

>>> from statestore import open_store
>>> from rwkv_runtime import Runtime, load_engine
>>> engine = load_engine("model.pth", dtype="bf16")  # doctest: +SKIP
>>> with open_store("file:///tmp/states") as store, Runtime(engine, store) as runtime:
...     result = runtime.prefill([document_tokens, question_tokens])  # doctest: +SKIP
"""

try:
    from rwkv_runtime.chat import Message
    from rwkv_runtime.conversation import Conversation
    from rwkv_runtime.engines import Engine, load_engine
    from rwkv_runtime.generation import Generated, Stop
    from rwkv_runtime.runtime import Answer, Runtime
    from rwkv_runtime.sampling import Sampling
    from rwkv_runtime.session import Prefill
    from rwkv_runtime.tokenizer import Tokenizer, tokenizer_for
except ModuleNotFoundError as error:
    if (error.name or "").startswith(("rwkv_runtime", "statestore")):
        raise
    message = f"rwkv_runtime needs {error.name}: pip install 'rwkv-statestore[runtime]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = [
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
    "tokenizer_for",
]
