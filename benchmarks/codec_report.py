"""What each codec costs and loses, on the states of the demo model.

For `--documents` unseen documents the state is read as the runtime reads it: chunk by chunk,
rounded at each chunk end where the codec is lossy. Then every question starts from it, and its end
is rounded too. One thread computes.

    stored    container bytes of a byte of fp32 state; lossy ones in lossless frames
    encode    from an engine's state to a container, bytes of fp32 state a second
    decode    the reverse
    logits    the largest difference of a logit at a question's end
    KL        of the exact next-byte distribution at a question's end from the lossy one, nats
    exact     answers that are right in every byte; `same` counts those that the exact state gives
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from benchmarks.stats import alternate, timed
from rwkv_runtime.demo.batches import fork
from rwkv_runtime.demo.corpus import DEMO_FACTS, Document, Question, unseen_document
from rwkv_runtime.demo.evaluate import LONGEST_ANSWER, SHIPPED
from rwkv_runtime.engines import LOSSY, Engine, EngineState, Lossy, LossyEngine, load_engine
from rwkv_runtime.engines.rounding import expanded, rounded
from rwkv_runtime.model import LayerState, ModelState, Weights, forward, logits
from rwkv_runtime.template import STOP, clean_answer, question_segment
from statestore.codec import CodecName, Header, decode, encode, kernel
from statestore.keys import StateKey
from statestore.schema import DType, Schema, TensorSpec

CODECS: tuple[tuple[str, Lossy | None, CodecName], ...] = (
    ("raw", None, "raw"),
    ("lossless", None, "lossless"),
    *((lossy, lossy, "lossless") for lossy in LOSSY),
)


@dataclass(slots=True)
class Quality:
    """What a codec's answers were."""

    asked: int = 0
    exact: int = 0
    same: int = 0
    divergences: list[float] = field(default_factory=list)
    logit_difference: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Shares and the divergence's mean and largest value."""
        return {
            "questions": self.asked,
            "exact_share": self.exact / self.asked,
            "same_share": self.same / self.asked,
            "kl_mean": sum(self.divergences) / self.asked,
            "kl_max": max(self.divergences),
            "logit_difference": self.logit_difference,
        }


@click.command()
@click.option("--documents", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(documents: int, runs: int, as_json: bool) -> None:
    """Measure size, speed and quality of every codec."""
    torch.set_num_threads(1)
    kernel.settled(60.0)  # compiled, where it was not
    exact = load_engine(SHIPPED, threads=1)
    engines = {lossy: LossyEngine(exact, lossy) if lossy else exact for lossy in (None, *LOSSY)}
    with torch.inference_mode():
        speeds = measure_speeds(engines, runs)
        qualities = measure_quality(engines, documents)
    rows = {name: speeds[name] | qualities[lossy].to_dict() for name, lossy, _ in CODECS}
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        report(rows)


def read(engine: Engine, document: Document) -> tuple[Tensor, EngineState]:
    """The document's last hidden vector and state, in the runtime's chunks."""
    tokens = torch.tensor(list(document.text.encode()))
    state = engine.initial_state()
    for chunk in torch.split(tokens, engine.rule.chunk):
        output, state = engine.prefill(chunk, state)
    return output, state


def measure_speeds(engines: dict[Lossy | None, Engine], runs: int) -> dict[str, dict[str, float]]:
    """Per codec: stored share, encoding and decoding speed, over one document's state."""
    document = unseen_document(0, DEMO_FACTS)
    things: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, lossy, codec in CODECS:
        engine = engines[lossy]
        output, state = read(engine, document)
        inner = engine.inner if isinstance(engine, LossyEngine) else engine
        plain = state.engine if isinstance(engine, LossyEngine) else state

        def pack(
            engine: Engine = engine, state: EngineState = state, output: Tensor = output,
            plain: EngineState = plain, codec: CodecName = codec,
        ) -> bytes:  # fmt: skip
            if isinstance(engine, LossyEngine):  # with the rounding that goes before
                state = replace(state, engine=plain, stored=None)
            stored = engine.to_stored(state, output)
            header = Header.of(
                stored, key=StateKey(bytes(32), 1), fingerprint=bytes(32), namespace="report"
            )
            return b"".join(encode(header, stored, codec))

        blob = pack()
        sizes[name] = len(blob)
        things[f"{name} encode"] = lambda pack=pack: timed(pack)
        things[f"{name} decode"] = lambda engine=engine, blob=blob: timed(
            lambda: engine.from_stored(decode(blob)[1])
        )
        whole = inner.schema.nbytes
    timings = alternate(runs, things)
    return {
        name: {
            "stored_share": sizes[name] / whole,
            "encode_mb_s": whole / timings[f"{name} encode"].median_s / 1e6,
            "decode_mb_s": whole / timings[f"{name} decode"].median_s / 1e6,
        }
        for name, _, _ in CODECS
    }


def measure_quality(
    engines: dict[Lossy | None, Engine], documents: int
) -> dict[Lossy | None, Quality]:
    """The answers from every kind of state, beside those from the exact one."""
    weights = Weights.of(load_file(SHIPPED))
    found: dict[Lossy | None, Quality] = {lossy: Quality() for lossy in engines}
    for number in range(documents):
        document = unseen_document(number, DEMO_FACTS)
        states = {lossy: read(engine, document)[1] for lossy, engine in engines.items()}
        for group in _groups(document.questions):
            exact_logits, exact_answers = answers(weights, states[None], group, None)
            for lossy, quality in found.items():
                its_logits, its_answers = exact_logits, exact_answers
                if lossy is not None:
                    its_logits, its_answers = answers(weights, states[lossy].engine, group, lossy)
                quality.asked += len(group)
                quality.divergences += divergence(exact_logits, its_logits).tolist()
                difference = float((exact_logits - its_logits).abs().max())
                quality.logit_difference = max(quality.logit_difference, difference)
                quality.exact += sum(q.answer == a for q, a in zip(group, its_answers, strict=True))
                quality.same += sum(map(str.__eq__, exact_answers, its_answers))
    return found


def _groups(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Questions of equal length, which share a batch."""
    by_length: defaultdict[int, list[Question]] = defaultdict(list)
    for question in questions:
        by_length[len(question_segment(question.text))].append(question)
    yield from by_length.values()


def answers(
    weights: Weights, state: ModelState, questions: Sequence[Question], lossy: Lossy | None
) -> tuple[Tensor, list[str]]:
    """Logits at the questions' ends [Q, V], and the greedy answers."""
    prompts = [list(question_segment(question.text).encode()) for question in questions]
    hidden, state = forward(weights, torch.tensor(prompts), fork(state, len(questions)))
    if lossy is not None:
        state = tuple(_settled(layer, lossy) for layer in state)
    first = logits(weights, hidden[:, -1])
    written = first.argmax(-1, keepdim=True)  # [Q, 1]
    while written.shape[1] < LONGEST_ANSWER and not (written == ord(STOP)).any(1).all():
        hidden, state = forward(weights, written[:, -1:], state)
        written = torch.cat((written, logits(weights, hidden[:, -1:]).argmax(-1)), dim=1)
    texts = [clean_answer(bytes(row).decode(errors="replace")) for row in written.tolist()]
    return first, texts


def _settled(layer: LayerState, lossy: Lossy) -> LayerState:
    """A layer of several rows, rounded as each row's would be."""
    tensors = {"att_kv": layer.att_kv}
    if lossy != "int8":  # which leaves vectors alone, and rows of vectors look like a matrix
        tensors |= {"att_x_prev": layer.att_x_prev, "ffn_x_prev": layer.ffn_x_prev}
    specs = tuple(TensorSpec(name, DType.F32, tuple(t.shape)) for name, t in tensors.items())
    kept = expanded(rounded(tensors, lossy), Schema("layer", specs, 1), lossy)
    return replace(layer, **kept)


def divergence(exact: Tensor, other: Tensor) -> Tensor:
    """KL(exact || other) of the distributions of two rows of logits [Q, V] -> [Q], in nats."""
    p, q = F.log_softmax(exact.double(), -1), F.log_softmax(other.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def report(rows: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    names = (
        "",
        "stored",
        "encode MB/s",
        "decode MB/s",
        "logits",
        "KL mean",
        "KL max",
        "exact",
        "same",
    )
    table = Table(*names, title="Codecs on the demo model's states")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['stored_share']:.3f}",
            f"{row['encode_mb_s']:,.0f}",
            f"{row['decode_mb_s']:,.0f}",
            f"{row['logit_difference']:.1e}",
            f"{row['kl_mean']:.1e}",
            f"{row['kl_max']:.1e}",
            f"{row['exact_share']:.4f}",
            f"{row['same_share']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
