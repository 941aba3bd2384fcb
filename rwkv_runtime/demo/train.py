"""Train the demo model: `python -m rwkv_runtime.demo.train OUT --steps N`.

Every step draws fresh documents from a seed that is the step's number, reads them, forks each
document's state over its questions, and learns the answers' bytes and, with a small weight, the
documents' own. The number of facts rises when documents of the present number are answered well.

A run goes on from the snapshot in OUT. What is given then may differ (a longer run, another batch):
each such plan is kept in the snapshot with the step at which it began.
"""

import argparse
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from rwkv_runtime.demo.batches import NO_TARGET, Batch, fork, make_batch
from rwkv_runtime.demo.corpus import (
    RELATIONS,
    Document,
    Relation,
    make_document,
    narrowed,
)
from rwkv_runtime.demo.initial import Shape, initial_weights
from rwkv_runtime.demo.probes import (
    PARTS,
    SUBJECT,
    VALUE,
    document_labels,
    probe_loss,
    question_labels,
)
from rwkv_runtime.demo.snapshot import load_snapshot, save_snapshot, save_tensors
from rwkv_runtime.model import Weights, forward_streams, logits, normed, zero_state

PROBES = ("probe.held", "probe.recalled")
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32)  # facts
TYPICAL_FACT_BYTES = 36
REMEMBERED = 0.98  # of the running mean of exact answers, per step
SHORTEST_STAY = 20  # steps at a level
MAX_GRADIENT_NORM = 1.0
LOG_STEPS = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """All that shapes a run."""

    layers: int = 4
    width: int = 128
    rank: int = 32
    lr: float = 6e-3
    warmup: int = 50
    steps: int = 100_000
    decay: int = 0  # the last steps, over which the learning rate falls to nothing
    document_bytes: int = 1024  # read per step, about
    min_documents: int = 4
    questions: int = 8  # of each document, at most
    document_loss: float = 0.1  # weight of the documents' own bytes
    probe_loss: float = 0.5  # weight of the probes' losses
    held_block: int = 1  # after which the subject and the value in hand are probed
    recalled_block: int = 2  # after which the value that is asked for is probed
    narrow: float = 0.2  # share of documents whose values are easily confused
    alike: float = 0.4  # share of documents whose facts are all of one relation
    codes: float = 0.5  # share of codes, the hardest values, among those
    present: float = 0.5  # share of steps at the present level; the others are below it
    raise_at: float = 0.75
    most_facts: int = 32
    dtype: str = "bfloat16"  # of the computation; the weights are fp32
    device: str = "cpu"

    def lr_at(self, step: int) -> float:
        """Warm up, stay, fall linearly to zero."""
        rest = (self.steps - step) / self.decay if self.decay else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup, rest)


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    level: int = 0
    exact: float = 0.0  # running mean at this level
    stay: int = 0  # steps at this level
    bytes_read: int = 0
    seconds: float = 0.0
    plans: list[tuple[int, dict[str, object]]] = field(default_factory=list)

    def note(self, exact: float) -> None:
        """Take the share of exact answers of one step at the present level."""
        self.stay += 1
        weight = max(1 - REMEMBERED, 1 / self.stay)
        self.exact += weight * (exact - self.exact)

    def rise(self) -> None:
        """Go to the next level."""
        self.level, self.exact, self.stay = self.level + 1, 0.0, 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one batch gave."""

    answers: Tensor  # mean loss over the answers' bytes
    documents: Tensor  # mean loss over the documents' bytes
    held: Tensor  # mean loss of the probes of what is in hand
    recalled: Tensor  # mean loss of the probe of what is asked for
    exact: float  # share of questions with every byte right


class Trainer:
    """The weights, their optimisers, and the loop."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out, self.progress = plan, out, Progress()
        shape = Shape(plan.layers, plan.width, plan.rank)
        start = initial_weights(shape, torch.Generator().manual_seed(0))
        self.weights = {n: t.to(plan.device).requires_grad_() for n, t in start.items()}
        blank = torch.zeros(sum(PARTS), plan.width, device=plan.device)
        self.probes = {name: blank.clone().requires_grad_() for name in PROBES}
        self.optimisers = make_optimisers(self.weights, self.probes)
        if self.snapshot.exists():
            self.progress = Progress(
                **load_snapshot(self.snapshot, self.parameters, self.optimisers)
            )
        self.progress.plans.append((self.progress.step, asdict(plan)))
        self.stopped = False

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All that is trained."""
        return {**self.weights, **self.probes}

    @property
    def snapshot(self) -> Path:
        """The file that a run goes on from."""
        return self.out / "snapshot.safetensors"

    def run(self, save_every_s: float) -> None:
        """Train up to the plan's last step, saving as often as asked, and at the end."""
        saved = time.monotonic()
        while self.progress.step < self.plan.steps and not self.stopped:
            started = time.monotonic()
            outcome = self.step()
            self.progress.seconds += time.monotonic() - started
            if self.progress.step % LOG_STEPS == 0:
                self.log(outcome)
            if time.monotonic() - saved > save_every_s:
                self.save()
                saved = time.monotonic()
        self.save()

    def stop(self) -> None:
        """End after the step in hand, and save."""
        self.stopped = True

    def step(self) -> Outcome:
        """One batch of fresh documents: read, ask, learn."""
        plan, progress = self.plan, self.progress
        rng = Random(progress.step)  # noqa: S311 - reproducible, not secret
        level = progress.level if rng.random() < plan.present else rng.randrange(progress.level + 1)
        batch = draw_batch(rng, LEVELS[level], plan)
        dtype: torch.dtype = getattr(torch, plan.dtype)
        weights = Weights.of({n: t.to(dtype) for n, t in self.weights.items()})
        outcome = losses(weights, batch, {n: t.to(dtype) for n, t in self.probes.items()}, plan)
        guides = plan.document_loss * outcome.documents
        guides = guides + plan.probe_loss * (outcome.held + outcome.recalled)
        self.learn(outcome.answers + guides)
        progress.step += 1
        progress.bytes_read += batch.documents.numel() + batch.questions.numel()
        if level == progress.level:
            progress.note(outcome.exact)
            self.consider_rise()
        return outcome

    def learn(self, loss: Tensor) -> None:
        """One step down the gradient."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRADIENT_NORM)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.plan.lr_at(self.progress.step)
            optimiser.step()
            optimiser.zero_grad()

    def consider_rise(self) -> None:
        """Go on to more facts when the present number is answered well."""
        now = self.progress
        ready = now.stay > SHORTEST_STAY and now.exact > self.plan.raise_at
        if ready and LEVELS[now.level] < self.plan.most_facts:
            now.rise()
            print(
                f"step {now.step}: {LEVELS[now.level]} facts, after {now.seconds:.0f} s", flush=True
            )

    def log(self, outcome: Outcome) -> None:
        """One plain line."""
        now = self.progress
        print(
            f"step {now.step}  facts {LEVELS[now.level]}  exact {now.exact:.3f}  "
            f"answers {outcome.answers.item():.3f}  documents {outcome.documents.item():.3f}  "
            f"held {outcome.held.item():.3f}  recalled {outcome.recalled.item():.3f}  "
            f"{now.bytes_read / 1e6:.2f} MB  {now.seconds:.0f} s",
            flush=True,
        )

    def save(self) -> None:
        """Write the snapshot, and the weights alone as an ordinary file."""
        save_snapshot(self.snapshot, self.parameters, self.optimisers, asdict(self.progress))
        bare = {name: tensor.detach() for name, tensor in self.weights.items()}
        save_tensors(self.out / "model.safetensors", bare, {"format": "pt"})


def make_optimisers(
    weights: Mapping[str, Tensor], probes: Mapping[str, Tensor]
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all others."""
    matrices = [t for n, t in weights.items() if is_inner_matrix(n, t)]
    others = [t for n, t in weights.items() if not is_inner_matrix(n, t)] + [*probes.values()]
    return [
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True),
    ]


def is_inner_matrix(name: str, tensor: Tensor) -> bool:
    """Whether Muon's orthogonal steps suit it: r_k is a vector in a matrix's shape."""
    return name.startswith("blocks.") and tensor.ndim == 2 and not name.endswith(".r_k")


def draw_batch(rng: Random, facts: int, plan: Plan) -> Batch:
    """Documents of `facts` facts, as many as the plan's bytes allow."""
    count = max(plan.min_documents, plan.document_bytes // (TYPICAL_FACT_BYTES * facts))
    documents = [draw_document(rng, facts, plan) for _ in range(count)]
    return make_batch(rng, documents, min(facts, plan.questions)).to(plan.device)


def draw_document(rng: Random, facts: int, plan: Plan) -> Document:
    """Of the corpus, or harder: then little but the subject tells its facts apart."""
    relations: tuple[Relation, ...] = RELATIONS
    if rng.random() < plan.alike:
        coded = rng.random() < plan.codes
        relations = (rng.choice([r for r in RELATIONS if (r.values is None) == coded]),)
    if rng.random() < plan.narrow:
        relations = tuple(narrowed(rng, relation) for relation in relations)
    return make_document(rng, facts, relations)


def losses(weights: Weights, batch: Batch, probes: Mapping[str, Tensor], plan: Plan) -> Outcome:
    """Read the documents, fork, read questions and answers."""
    count = batch.documents.shape[0]
    read, state = forward_streams(weights, batch.documents, zero_state(weights, count))
    forked = fork(state, batch.questions.shape[0] // count)
    asked, _ = forward_streams(weights, batch.questions, forked)
    documents, _ = _byte_loss(weights, read[-1], batch.document_targets)
    answers, right = _byte_loss(weights, asked[-1], batch.answer_targets)
    rows = (batch.answer_targets != NO_TARGET).nonzero()[:, 0]
    exact = (torch.bincount(rows, (~right).float()) == 0).float().mean().item()
    return Outcome(answers, documents, *_guides(read, asked, batch, probes, plan), exact)


def _guides(
    read: Sequence[Tensor],
    asked: Sequence[Tensor],
    batch: Batch,
    probes: Mapping[str, Tensor],
    plan: Plan,
) -> tuple[Tensor, Tensor]:
    """The probes' losses: of what is in hand, and of what is recalled."""
    in_documents = document_labels(batch.read, batch.documents.shape[1]).to(plan.device)
    in_questions = question_labels(batch.asked, batch.questions.shape[1]).to(plan.device)
    held, recalled = (probes[name] for name in PROBES)
    in_hand = (
        probe_loss(held, read[plan.held_block], in_documents, SUBJECT)
        + probe_loss(held, read[plan.held_block], in_documents, VALUE)
        + probe_loss(held, asked[plan.held_block], in_questions, SUBJECT)
    )
    return in_hand, probe_loss(recalled, asked[plan.recalled_block], in_questions, VALUE)


def _byte_loss(weights: Weights, stream: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss and what was right [n], where there is a target."""
    wanted = targets != NO_TARGET
    scores = logits(weights, normed(stream[wanted], weights.ln_out)).float()
    return F.cross_entropy(scores, targets[wanted]), scores.argmax(-1) == targets[wanted]


def parse(arguments: Sequence[str] | None) -> tuple[Plan, argparse.Namespace]:
    """The plan and what is not part of it."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("out", type=Path, help="directory of the run; goes on from its snapshot")
    parser.add_argument("--save-every", type=float, default=120.0, metavar="SECONDS")
    for entry in fields(Plan):
        flag = "--" + entry.name.replace("_", "-")
        default = getattr(Plan(), entry.name)
        parser.add_argument(flag, dest=entry.name, type=type(default), default=default)
    options = parser.parse_args(arguments)
    return Plan(**{entry.name: getattr(options, entry.name) for entry in fields(Plan)}), options


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, say where the result is."""
    plan, options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(plan, options.out)
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
    print(json.dumps(asdict(plan)), flush=True)
    trainer.run(options.save_every)
    print(f"weights: {options.out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
