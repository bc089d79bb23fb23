"""The tools that people train with, around an overlaid model with its toggles on: stock's weights afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import amd_ops
from tests.parity import twins

from .test_models import EVERYTHING, OFF, apart, batch, clean, loss_of

__all__ = ["clean"]  # a fixture of this file, too
pytestmark = pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning", "ignore::FutureWarning")
ON: dict[str, Any] = {**EVERYTHING, "use_optimized_ops": 0}


class Words(Dataset[dict[str, Tensor]]):
    """Rows of different length, which the default collator cannot pad: all have the same number of words here."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(3, 100, (12,), generator=torch.Generator().manual_seed(index))
        labels = ids.masked_fill(torch.arange(12) < index % 5, -100)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def trainer(model: Any, folder: Path) -> None:
    """Accumulation, clipping, checkpointing and an evaluation that reads the logits."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_steps=3,
        learning_rate=1e-2,
        logging_strategy="no",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    seen: list[tuple[int, ...]] = []

    def metrics(found: Any) -> dict[str, float]:
        seen.append(found.predictions.shape)
        return {}

    made = Trainer(model, arguments, train_dataset=Words(), eval_dataset=Words(), compute_metrics=metrics)
    made.train()
    made.evaluate()
    assert [shape[:2] for shape in seen] == [(16, 12)]


def accelerator(model: Any, folder: Path) -> None:
    """accelerate's loop, under its own accumulation."""
    from accelerate import Accelerator

    tool = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimiser = tool.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))
    for seed in range(4):
        with tool.accumulate(model):
            tool.backward(loss_of(model, seed))
            optimiser.step()
            optimiser.zero_grad()


def averaged(model: Any, folder: Path) -> None:
    """An exponential moving average beside the training, and swapped in at its end."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-1)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for seed in range(3):
        optimiser.zero_grad()
        loss_of(model, seed).backward()
        optimiser.step()
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())


def step_inside_backward(model: Any, folder: Path) -> None:
    """Every parameter is updated as soon as its gradient is there, and the gradient is dropped."""

    def update(parameter: Any) -> None:
        with torch.no_grad():
            parameter.sub_(parameter.grad, alpha=1e-2)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    for seed in range(3):
        loss_of(model, seed).backward()


LOOPS: dict[str, Callable[[Any, Path], None]] = {
    one.__name__: one for one in (trainer, accelerator, averaged, step_inside_backward)
}


def calls(op: str) -> int:
    row = next(row for row in amd_ops.report().as_dict()["ops"] if row["op"] == op)
    found: int = row["tiers"][0]["calls"]
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_weights_as_stock(loop: str, tmp_path: Path) -> None:
    pair = twins.new_pair("llama", "float32")
    before = {name: one.clone() for name, one in pair.stock.state_dict().items()}
    torch.manual_seed(0)
    LOOPS[loop](pair.stock.train(), tmp_path)
    torch.manual_seed(0)
    with amd_ops.override(**ON):
        LOOPS[loop](pair.overlay.train(), tmp_path)
        assert calls("qkv_proj")
        assert calls("gated_mlp")
        assert calls("causal_lm_loss")
    for name, want in pair.stock.state_dict().items():
        got = pair.overlay.state_dict()[name]
        assert apart(got - before[name], want - before[name]) < 2e-2, name


def test_autocast() -> None:
    """Weights in fp32, products in bf16: as far from fp32 as stock's own autocast."""
    pair = twins.new_pair("llama", "float32")
    found = []
    for model, toggles, enabled in ((pair.stock, OFF, False), (pair.stock, OFF, True), (pair.overlay, ON, True)):
        model.train().zero_grad()
        with amd_ops.override(**toggles), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = loss_of(model)
        loss.backward()
        found.append({name: one.grad.clone() for name, one in model.named_parameters()})
    exact, stock, ours = found
    for name, want in exact.items():
        assert ours[name].dtype is torch.float32
        assert apart(ours[name], want) <= 1.5 * apart(stock[name], want) + 5e-3, name
    assert calls("qkv_proj")


def test_tied_embeddings_get_both_gradients() -> None:
    pair = twins.new_pair("llama", "float32", tie_word_embeddings=True)
    assert pair.overlay.lm_head.weight is pair.overlay.model.embed_tokens.weight
    pair.stock.train(), pair.overlay.train()
    loss_of(pair.stock).backward()
    with amd_ops.override(**ON):
        loss_of(pair.overlay).backward()
    assert apart(pair.overlay.lm_head.weight.grad, pair.stock.lm_head.weight.grad) < 1e-5


def test_a_label_outside_of_the_vocabulary_is_stocks_error() -> None:
    pair = twins.new_pair("llama", "float32")
    given = batch()
    given["labels"][0, 3] = pair.stock.config.vocab_size
    for model, toggles in ((pair.stock, OFF), (pair.overlay, ON)):
        with amd_ops.override(**toggles), pytest.raises(IndexError, match="out of bounds"):
            model.train()(**given)
