"""Distillation: gradients are those of the formula, in any parts; a run with teachers is evaluated as any."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from runs import losses, validations

import model as module
from llama.errors import BadFileError, UsageError
from llama.native import SHIPPED
from model import IGNORE, Config, Llama
from training.distillation import Distillation
from training.objectives import LANGUAGE, objective_of

SHAPE = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 53, "max_seq_len": 64}


def fresh(seed: int, **shape: int) -> Llama:
    torch.manual_seed(seed)
    model = Llama(Config(**SHAPE | shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    return model


def gradients(model: Llama, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("chunk", [53 * 7, 1 << 22])
def test_the_loss_and_its_gradients_are_those_of_the_formula(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_VALUES", chunk)
    draw = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 53, (2, 3, 40), generator=draw)
    targets[0, :9] = IGNORE
    doc_ids, weights = (torch.arange(40) // 23).expand(3, -1), torch.rand(3, 40, generator=draw)
    student, teachers = fresh(0), [fresh(1, dim=48), fresh(2, n_layers=2)]
    logits = student(tokens, doc_ids=doc_ids)
    with torch.no_grad():
        q = sum(teacher(tokens, doc_ids=doc_ids).softmax(-1) for teacher in teachers) / 2
    log_p, counts = logits.log_softmax(-1), weights * (targets != IGNORE)
    hard = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = ((0.3 * hard - 0.7 * (q * log_p).sum(-1)) * counts).sum()
    plain = student(tokens, targets, doc_ids, weights)[0].item()

    distillation = Distillation(student, teachers, share=0.7)
    (loss,), count = distillation(student, (tokens, targets, doc_ids, weights))
    assert (loss.item(), count.item()) == pytest.approx((expected.item(), counts.sum().item()), rel=1e-5)
    for found, wanted in zip(gradients(student, loss), gradients(student, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    student.eval()
    assert distillation(student, (tokens, targets, doc_ids, weights))[0].item() == pytest.approx(plain)


def test_a_student_of_itself_learns_the_text_alone():
    tokens, targets = torch.randint(0, 53, (2, 2, 30))
    student = fresh(0)
    expected = gradients(student, LANGUAGE(student, (tokens, targets, None, None))[0])
    found = gradients(student, Distillation(student, [fresh(0)], 0.25)(student, (tokens, targets, None))[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, 0.75 * b, rtol=1e-4, atol=1e-5)


def test_a_run_learns_of_teachers_and_says_how_well_it_knows_the_text(data, train_here, tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    said = ["--max_steps=4", "--eval_interval=2", "--micro_batch_size=4", f"--data={data}"]
    train_here(f"--out_dir={first}", *said)
    train_here(f"--out_dir={second}", *said, "--seed=5", f"--teachers={first / 'last'},{first / 'model.bin'}")
    train_here(f"--out_dir={third}", *said, "--seed=5")
    assert validations(second)[0] == validations(third)[0]
    assert losses(second) != losses(third)


def test_what_does_not_go_together_is_refused(data, train_here, tmp_path):
    said = [f"--data={data}", f"--out_dir={tmp_path}", "--max_steps=1"]
    with pytest.raises(BadFileError, match=r"stories\.bin: token 259"):
        train_here(*said, f"--teachers={SHIPPED}")
    with pytest.raises(UsageError, match="teachers = a, allowed '' with data of pairs"):
        objective_of("pairs", SimpleNamespace(teachers="a"))
