"""Measure exact answers on unseen documents: `python -m rwkv_runtime.demo.evaluate`.

The way of the runtime: a document is read once, in chunks with the state carried; every question
starts from that state as a chunk of its own; the answer is decoded greedily, byte by byte, and
counts only if all of it is right. Questions of equal length share a batch.
"""

import argparse
import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rwkv_runtime.demo.batches import fork
from rwkv_runtime.demo.corpus import DEMO_FACTS, Document, Question, unseen_document
from rwkv_runtime.model import ModelState, Weights, forward, logits, zero_state
from rwkv_runtime.template import STOP, clean_answer, question_segment

CHUNK = 256
LONGEST_ANSWER = 24
SHIPPED = Path(__file__).with_name("model.safetensors")


def read(weights: Weights, text: str, state: ModelState) -> tuple[Tensor, ModelState]:
    """Read one text in chunks -> (the last hidden vector [1, C], state)."""
    tokens = torch.tensor([list(text.encode())])
    for chunk in torch.split(tokens, CHUNK, dim=1):
        hidden, state = forward(weights, chunk, state)
    return hidden[:, -1], state


def answers(weights: Weights, state: ModelState, questions: Sequence[Question]) -> list[str]:
    """Greedy answers to questions of equal length, each from `state` [1, ...]."""
    prompts = [list(question_segment(question.text).encode()) for question in questions]
    hidden, state = forward(weights, torch.tensor(prompts), fork(state, len(questions)))
    written = logits(weights, hidden[:, -1:]).argmax(-1)  # [Q, 1]
    while written.shape[1] < LONGEST_ANSWER and not (written == ord(STOP)).any(1).all():
        hidden, state = forward(weights, written[:, -1:], state)
        written = torch.cat((written, logits(weights, hidden[:, -1:]).argmax(-1)), dim=1)
    return [clean_answer(bytes(row).decode(errors="replace")) for row in written.tolist()]


def marks(weights: Weights, document: Document) -> Iterator[tuple[Question, str]]:
    """Every question of the document with the model's answer."""
    _, state = read(weights, document.text, zero_state(weights))
    by_length: defaultdict[int, list[Question]] = defaultdict(list)
    for question in document.questions:
        by_length[len(question_segment(question.text))].append(question)
    for group in by_length.values():
        yield from zip(group, answers(weights, state, group), strict=True)


def measure(weights: Weights, documents: Iterable[Document]) -> dict[str, object]:
    """Counts and shares, over all questions and per relation."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    read_bytes = count = 0
    for document in documents:
        count, read_bytes = count + 1, read_bytes + len(document.text)
        for question, answer in marks(weights, document):
            asked[question.relation] += 1
            right[question.relation] += answer == question.answer
    low, high = wilson(right.total(), asked.total())
    return {
        "documents": count,
        "mean_document_bytes": round(read_bytes / count),
        "questions": asked.total(),
        "exact": right.total(),
        "exact_share": round(right.total() / asked.total(), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "by_relation": {name: round(right[name] / asked[name], 4) for name in sorted(asked)},
    }


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The interval in which the true share lies, 95 times of 100."""
    share, weight = right / asked, z * z / asked
    middle = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return middle - reach, middle + reach


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Measure exact answers on unseen documents.")
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--facts", type=int, default=DEMO_FACTS)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    documents = (unseen_document(number, options.facts) for number in range(options.documents))
    with torch.inference_mode():
        result = measure(Weights.of(load_file(options.weights)), documents)
    digest = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    result |= {
        "facts": options.facts,
        "weights": digest,
        "seconds": round(time.monotonic() - started, 1),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
