"""The demo's training: goes on where it stopped, grows, and leaves an ordinary weights file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rwkv_runtime.demo.corpus import unseen_document
from rwkv_runtime.demo.evaluate import measure, wilson
from rwkv_runtime.demo.initial import Shape, initial_weights
from rwkv_runtime.demo.train import LEVELS, Plan, Trainer
from rwkv_runtime.model import Weights, forward, logits, zero_state

PLAN = Plan(layers=3, width=64, document_bytes=64, min_documents=2, questions=2, dtype="float32")


def train(out: Path, plan: Plan) -> Trainer:
    out.mkdir(exist_ok=True)
    trainer = Trainer(plan, out)
    trainer.run(save_every_s=600)
    return trainer


def fresh(layers: int) -> dict[str, Tensor]:
    return initial_weights(Shape(layers, 64), torch.Generator().manual_seed(0))


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    through = train(tmp_path / "through", replace(PLAN, steps=4))
    train(tmp_path / "stopped", replace(PLAN, steps=2))
    resumed = train(tmp_path / "stopped", replace(PLAN, steps=4))
    assert resumed.progress.step == 4
    for name, tensor in through.parameters.items():
        assert torch.equal(tensor, resumed.parameters[name]), name


def test_the_weights_file_is_an_ordinary_one(tmp_path: Path) -> None:
    trainer = train(tmp_path, replace(PLAN, steps=1))
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(trainer.weights)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    Weights.of(tensors)


def test_a_model_grows_by_a_block_that_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path, replace(PLAN, steps=2))
    before = Weights.of(load_file(tmp_path / "model.safetensors"))
    grown = Weights.of(Trainer(replace(PLAN, layers=4), tmp_path).weights)
    tokens = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        small, _ = forward(before, tokens, zero_state(before))
        large, _ = forward(grown, tokens, zero_state(grown))
        assert torch.equal(logits(before, small), logits(grown, large))


def test_the_number_of_facts_rises_with_the_answers(tmp_path: Path) -> None:
    trainer = Trainer(replace(PLAN, raise_at=-1.0), tmp_path)
    trainer.progress.stay = 100
    trainer.consider_rise()
    assert LEVELS[trainer.progress.level] == 2
    trainer.progress.stay = 100
    trainer.plan = replace(PLAN, raise_at=-1.0, most_facts=2)
    trainer.consider_rise()
    assert LEVELS[trainer.progress.level] == 2


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    plan = Plan(lr=1.0, warmup=10, steps=100, decay=20)
    assert [plan.lr_at(step) for step in (0, 9, 50, 80, 90)] == [0.1, 1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("layers", [1, 3])
def test_a_fresh_model_has_the_official_names(layers: int) -> None:
    tensors = fresh(layers)
    assert "blocks.0.att.v0" not in tensors
    assert {name.split(".")[1] for name in tensors if name.startswith("blocks.")} == set(
        map(str, range(layers))
    )
    assert len(Weights.of(tensors).blocks) == layers


def test_a_model_that_knows_nothing_is_measured_as_such() -> None:
    with torch.inference_mode():
        result = measure(Weights.of(fresh(1)), [unseen_document(0, 2)])
    assert (result["documents"], result["questions"], result["exact"]) == (1, 2, 0)


def test_the_interval_holds_the_share() -> None:
    low, high = wilson(90, 100)
    assert low == pytest.approx(0.826, abs=1e-3)
    assert high == pytest.approx(0.945, abs=1e-3)
