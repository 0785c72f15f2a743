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
from training.distillation import Distillation, Stored
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


def draw_targets() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (3, 40), some of which are IGNORE."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 53, (2, 3, 40))
    targets[0, :9] = IGNORE
    return tokens, targets


def surprises(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]


def assert_same_loss(objective, student, batch, loss: torch.Tensor, count: torch.Tensor, stored=()) -> None:
    """An objective gives this loss, its gradients and count; and in an evaluation that of the text."""
    plain = student(*batch)[0].item()
    (found,), found_count = objective(student, (*batch, *stored))
    assert (found.item(), found_count.item()) == pytest.approx((loss.item(), count.item()), rel=1e-5)
    for a, b in zip(gradients(student, found), gradients(student, loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    student.eval()
    assert objective(student, batch)[0].item() == pytest.approx(plain)


@pytest.mark.parametrize("chunk", [53 * 7, 1 << 22])
def test_the_loss_and_its_gradients_are_those_of_the_formula(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_VALUES", chunk)
    tokens, targets = draw_targets()
    doc_ids, weights = (torch.arange(40) // 23).expand(3, -1), torch.rand(3, 40)
    student, teachers = fresh(0), [fresh(1, dim=48), fresh(2, n_layers=2)]
    with torch.no_grad():
        q = sum(teacher(tokens, doc_ids=doc_ids).softmax(-1) for teacher in teachers) / 2
    log_p, counts = student(tokens, doc_ids=doc_ids).log_softmax(-1), weights * (targets != IGNORE)
    loss = ((0.3 * surprises(log_p, targets) - 0.7 * (q * log_p).sum(-1)) * counts).sum()
    objective, batch = Distillation(student, teachers, share=0.7), (tokens, targets, doc_ids, weights)
    assert_same_loss(objective, student, batch, loss, counts.sum())


@pytest.mark.parametrize("chunk", [53 * 7, 1 << 22])
def test_the_loss_of_what_is_stored_is_that_of_the_formula(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_VALUES", chunk)
    tokens, targets = draw_targets()
    student, doc_ids, ids = fresh(1), (torch.arange(40) // 23).expand(3, -1), torch.rand(3, 40, 53).topk(5)[1]
    q = torch.rand(3, 40, 5) / 5
    q[1, 4:9] = 0
    log_p, counts = student(tokens, doc_ids=doc_ids).log_softmax(-1), (targets != IGNORE).float()
    soft = -(q * log_p.gather(-1, ids)).sum(-1)
    loss = (((1 - 0.7 * q.sum(-1)) * surprises(log_p, targets) + 0.7 * soft) * counts).sum()
    objective = Stored(student, 0.7)
    assert student.softmax_loss == objective.softmax_loss
    assert_same_loss(objective, student, (tokens, targets, doc_ids), loss, counts.sum(), (ids, q))


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
