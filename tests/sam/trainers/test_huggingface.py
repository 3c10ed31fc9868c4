"""``SAMTrainer`` beside transformers' own ``Trainer``, on models of a few hundred random weights."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lowland import presets
from lowland.sam import Cosine

from ..naive import bits, norm, relative_error

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
SAMTrainer = pytest.importorskip("lowland.sam.trainers.huggingface").SAMTrainer

EXAMPLES, LENGTH = 12, 6


def classifier(num_labels=3, dropout=0.0):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=LENGTH,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11,
        n_positions=LENGTH,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {"class": classifier, "number": functools.partial(classifier, 1), "text": language_model}


def sentences(kind):
    """Examples with a class, a number, or labels of which a different number counts in each."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 11, (EXAMPLES, LENGTH), generator=generator)
    labels = {
        "class": torch.randint(0, 3, (EXAMPLES,), generator=generator),
        "number": torch.randn(EXAMPLES, generator=generator),
        "text": rows.clone(),
    }[kind]
    if kind == "text":
        for i in range(EXAMPLES):
            labels[i, : 1 + i % 4] = -100  # the first is predicted by nothing
    return [{"input_ids": a, "labels": b} for a, b in zip(rows, labels, strict=True)]


def arguments(folder, **options):
    """Three steps an epoch, in the order of the data."""
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    fixed = {"use_cpu": True, "per_device_train_batch_size": 4, "learning_rate": 0.01, "max_steps": 5}
    pinned = {
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    return transformers.TrainingArguments(str(folder), **{**quiet, **fixed, **pinned, **options})


def trained(folder, model, kind, sam=None, resume=None, **options):
    """By SAMTrainer, or by the Trainer if ``sam`` is ``None``."""
    cls = transformers.Trainer if sam is None else functools.partial(SAMTrainer, sam=sam)
    trainer = cls(model=model, args=arguments(folder, **options), train_dataset=sentences(kind))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def plain_loop(model, kind, make=presets.sam, *, steps=5, clip=1.0, autocast=None, **options):
    """AdamW with its default options, on batches of four."""
    model.train()
    base, sam = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0), make(model, **options)
    given = sentences(kind)
    for step in range(steps):
        rows = given[step % 3 * 4 : step % 3 * 4 + 4]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        with autocast or nullcontext():
            sam.backward(lambda group: model(**group).loss, batch)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        base.step()
        base.zero_grad()
    return model


def error(trainer, model):
    return relative_error(list(trainer.model.parameters()), list(model.parameters()))


def weights(trainer):
    return [bits(p) for p in trainer.model.parameters()]


@pytest.mark.parametrize("m", [None, 2, 1])
def test_training_is_the_plain_loop_with_backward(m, tmp_path):
    trainer = trained(tmp_path, classifier(), "class", {"rho": 0.5, "m": m})
    assert error(trainer, plain_loop(classifier(), "class", rho=0.5, m=m)) < 1e-4
    assert error(trainer, plain_loop(classifier(), "class", rho=0.0)) > 1e-3
    assert trainer.sam.steps_done == 5


def test_gradient_norm_is_clipped_as_in_the_plain_loop(tmp_path):
    model, seen = classifier(), []
    trainer = trained(
        tmp_path, model, "class", {"rho": 0.5, "m": 2}, max_grad_norm=0.01, optim="sgd", max_steps=1
    )
    for p, q in zip(trainer.model.parameters(), classifier().parameters(), strict=True):
        seen.append((q - p).detach() / 0.01)
    assert norm(seen) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("kind", "accumulated"), [("class", 1), ("number", 1), ("text", 1), ("text", 2)])
def test_radius_zero_is_the_trainer(kind, accumulated, tmp_path):
    """Micro-batches of a text have different numbers of labels, some of them -100."""
    options = {"gradient_accumulation_steps": accumulated}
    sharp = trained(tmp_path, MODELS[kind](), kind, {"rho": 0.0}, **options)
    plain = trained(tmp_path, MODELS[kind](), kind, **options)
    assert relative_error(list(sharp.model.parameters()), list(plain.model.parameters())) < 1e-5
    assert sharp.state.global_step == plain.state.global_step == 5
    logged = [t.state.log_history[-1]["train_loss"] for t in (sharp, plain)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["class", "number", "text"])
def test_accumulated_micro_batches_are_one_large_batch(kind, tmp_path):
    """Also where the model's loss takes no number of items and is a mean of its own."""
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 1}
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    sharp = trained(tmp_path, MODELS[kind](), kind, {"rho": 0.0, "m": 3}, **options, **halves)
    plain = trained(tmp_path, MODELS[kind](), kind, per_device_train_batch_size=8, **options)
    start = list(MODELS[kind]().parameters())
    moves = [
        [(p - q).detach() for p, q in zip(t.model.parameters(), start, strict=True)] for t in (sharp, plain)
    ]
    assert relative_error(*moves) < 1e-4
    logged = [t.state.log_history[-1]["train_loss"] for t in (sharp, plain)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_accumulated_micro_batches_climb_each_by_itself(tmp_path):
    """And count by their labels in the one gradient of the step."""
    trainer = trained(
        tmp_path,
        language_model(),
        "text",
        {"rho": 0.5},
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
        max_steps=1,
    )
    model, given = language_model(), sentences("text")
    found, counts = [], []
    for start in (0, 4):
        rows = given[start : start + 4]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        twin = copy.deepcopy(model)
        presets.sam(twin, rho=0.5).backward(lambda group, twin=twin: twin(**group).loss, batch)
        found.append([p.grad for p in twin.parameters()])
        counts.append((batch["labels"][:, 1:] != -100).sum().item())
    expected = [(counts[0] * a + counts[1] * b) / sum(counts) for a, b in zip(*found, strict=True)]
    moves = [(q - p).detach() for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True)]
    assert relative_error(moves, expected) < 1e-4
    assert trainer.sam.steps_done == 1


def test_both_passes_are_made_in_bfloat16_if_the_trainer_is(tmp_path):
    trainer = trained(tmp_path, classifier(), "class", {"rho": 0.5, "m": 2}, bf16=True, max_steps=2)
    autocast = torch.autocast("cpu", torch.bfloat16)
    assert error(trainer, plain_loop(classifier(), "class", rho=0.5, m=2, steps=2, autocast=autocast)) < 1e-4
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_second_pass_sees_the_dropout_of_the_first(tmp_path):
    model, masks = classifier(dropout=0.5), []
    model.dropout.register_forward_hook(lambda *call: masks.append(call[2].detach() == 0))
    trained(tmp_path, model, "class", {"rho": 0.5}, max_steps=2)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


STATEFUL = {
    "friendly": lambda: {"ascent": presets.Friendly(), "rho": 0.5},
    "look": lambda: {"combine": presets.Look(4), "rho": 0.5},
    "schedule": lambda: {"rho": Cosine(0.5, 0.0, 6)},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_checkpoint_resumes_identically(name, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = trained(tmp_path, classifier(dropout=0.1), "class", STATEFUL[name](), **options)
    checkpoint = tmp_path / "checkpoint-3"
    resumed = trained(
        tmp_path, classifier(dropout=0.1), "class", STATEFUL[name](), str(checkpoint), **options
    )
    assert resumed.sam.steps_done == whole.sam.steps_done == 6
    assert weights(resumed) == weights(whole)


def test_checkpoint_of_the_trainer_is_continued_with_sam(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trained(tmp_path, classifier(), "class", **options)
    sam = {"rho": 0.5}
    trainer = trained(tmp_path, classifier(), "class", sam, str(tmp_path / "checkpoint-2"), max_steps=5)
    assert trainer.sam.steps_done == 3


def test_evaluation_is_the_trainers_own(tmp_path):
    trainer = trained(tmp_path, classifier(), "class", {"rho": 0.5})
    steps = trainer.sam.steps_done
    found = trainer.evaluate(sentences("class"))
    plain = transformers.Trainer(model=trainer.model, args=arguments(tmp_path))
    assert found["eval_loss"] == plain.evaluate(sentences("class"))["eval_loss"]
    assert trainer.sam.steps_done == steps


def test_model_that_train_makes_anew_is_the_one_that_is_perturbed(tmp_path):
    """With ``model_init``, ``train`` begins with another model than the constructor made."""
    given = {"args": arguments(tmp_path), "train_dataset": sentences("class"), "sam": {"rho": 0.5}}
    trainer = SAMTrainer(model_init=lambda: classifier(), **given)
    trainer.train()
    expected = trained(tmp_path, classifier(), "class", {"rho": 0.5})
    assert weights(trainer) == weights(expected)


@pytest.mark.usefixtures("untyped")
def test_trainer_without_a_model_is_refused(tmp_path):
    with pytest.raises((RuntimeError, ValueError), match="model"):
        SAMTrainer(args=arguments(tmp_path), sam={"rho": 0.5})


class Loose(nn.Module):
    """A classifier that is given more than it uses, as by collators for CLIP and for flash attention."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = classifier(), []

    def forward(self, input_ids, labels=None, return_loss=None, max_length_q=None, cu_seq_lens_q=None):
        self.seen.append((return_loss, max_length_q, None if cu_seq_lens_q is None else len(cu_seq_lens_q)))
        return self.model(input_ids=input_ids, labels=labels)


@pytest.mark.parametrize("m", [None, 1])
def test_entries_of_collators_that_are_no_rows_are_passed_through(tmp_path, m):
    found = []
    for extra in ({}, {"return_loss": True, "max_length_q": 7, "cu_seq_lens_q": torch.tensor([0, 3, 7])}):
        model = Loose()

        def collate(rows, extra=extra):
            return {**transformers.default_data_collator(rows), **extra}

        options = {"rho": 0.2, "m": m, "shared": ["cu_seq_lens_q"]}
        trainer = SAMTrainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=sentences("class"),
            data_collator=collate,
            sam=options,
        )
        trainer.train()
        assert set(model.seen) == {(True, 7, 3) if extra else (None, None, None)}
        found.append([p.detach() for p in model.parameters()])
    assert relative_error(found[1], found[0]) < 1e-6


def test_flattened_batches_are_passed_through(tmp_path):
    """All sentences as one row of tokens, beside numbers of other lengths."""
    model = language_model()

    def collate(rows):
        ids = torch.cat([row["input_ids"] for row in rows])[None, :LENGTH]
        return {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(LENGTH)[None]}

    before = [p.detach().clone() for p in model.parameters()]
    trainer = SAMTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=sentences("text"),
        data_collator=collate,
        sam={"rho": 0.2},
    )
    trainer.train()
    assert relative_error([p.detach() for p in model.parameters()], before) > 1e-3
