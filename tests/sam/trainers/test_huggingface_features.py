"""What a Hugging Face trainer can be told, with SAM: at radius 0 it is the trainer, else SAM by hand."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ..naive import relative_error
from .by_hand import sam_by_hand

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("lowland.sam.trainers.huggingface")
SAMTrainer, SAMTrainerMixin = huggingface.SAMTrainer, huggingface.SAMTrainerMixin

from .tiny import (  # noqa: E402
    ONE_STEP,
    gradient_by_hand,
    language_model,
    moved,
    of_texts,
    padded,
    texts,
    trained,
    weights,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated and will be removed in v6:FutureWarning",
    "ignore:Using `torch.compile:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)

LOOP = {"m": 1, "engine": "loop"}
TEXTS = texts()


def squares(outputs, labels, num_items_in_batch=None):
    """A loss of the user's, over the labels that count."""
    counts = labels[:, 1:] != -100
    errors = (outputs.logits[:, :-1] - F.one_hot(labels[:, 1:].clamp(min=0), outputs.logits.shape[-1])) ** 2
    total = (errors.sum(2) * counts).sum()
    return total / (counts.sum() if num_items_in_batch is None else num_items_in_batch)


def answers(hidden=8):
    """A model whose labels have other names."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=12,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForQuestionAnswering(config).double()


QUESTIONS = [
    {"input_ids": [2 + (i + j) % 9 for j in range(5)], "start_positions": i % 4, "end_positions": 4 - i % 2}
    for i in range(12)
]

FEATURES = {
    "padding": {},
    "eager attention": {"model": functools.partial(language_model, attn_implementation="eager")},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation to the end": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 5},
    "tokens by device": {"gradient_accumulation_steps": 2, "average_tokens_across_devices": False},
    "checkpointing": {"gradient_checkpointing": True},
    "compute_loss_func": {"given": {"compute_loss_func": squares}, "gradient_accumulation_steps": 2},
    "label_names": {
        "model": answers,
        "data": QUESTIONS,
        "collator": None,
        "label_names": ["start_positions", "end_positions"],
        "gradient_accumulation_steps": 2,
    },
    "evaluation": {
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "given": {"eval_dataset": TEXTS[:3]},
    },
    "clipping": {"max_grad_norm": 0.01},
    "noise in embeddings": {"neftune_noise_alpha": 5.0},
    "warmup and cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 1},
}


def run(cls, folder, sam=None, *, model=language_model, **options):
    return trained(cls, folder, model(), sam, **options)


@pytest.mark.parametrize("m", [None, 1])
@pytest.mark.parametrize("name", FEATURES)
def test_radius_zero_is_the_trainer(name, m, tmp_path):
    options = FEATURES[name]
    plain = run(transformers.Trainer, tmp_path, **options)
    sharp = run(SAMTrainer, tmp_path, {"rho": 0.0, "m": m, "engine": "loop"}, **options)
    # Adam multiplies roundings
    assert relative_error(weights(sharp), weights(plain)) < (1e-12 if m is None else 1e-10)
    assert sharp.state.log_history[-1]["train_loss"] == pytest.approx(
        plain.state.log_history[-1]["train_loss"], rel=1e-6
    )
    evaluations = [
        [row["eval_loss"] for row in t.state.log_history if "eval_loss" in row] for t in (sharp, plain)
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-6)
    assert len(evaluations[0]) == (4 if name == "evaluation" else 0)
    assert relative_error(weights(plain), list(options.get("model", language_model)().parameters())) > 1e-6


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad"])
def test_optimizer_of_the_trainer_makes_the_step(optim, tmp_path):
    plain, sharp = (
        run(cls, tmp_path, sam, optim=optim)
        for cls, sam in ((transformers.Trainer, None), (SAMTrainer, {"rho": 0.0}))
    )
    assert all(map(torch.equal, weights(sharp), weights(plain)))
    climbed = run(SAMTrainer, tmp_path, {"rho": 0.3}, optim=optim)
    assert type(climbed.optimizer) is type(plain.optimizer)
    assert relative_error(weights(climbed), weights(plain)) > 1e-4


def test_compiled_model_makes_the_same_step(tmp_path):
    options = {"torch_compile": True, "torch_compile_backend": "eager", **ONE_STEP}
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3}, **options)
    assert hasattr(trainer.model_wrapped, "_orig_mod")
    expected = gradient_by_hand(language_model(), [TEXTS[:4]], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


def test_recorded_steps_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"capture must be 'off' in SAMTrainer.*got 'replay'"):
        run(SAMTrainer, tmp_path, {"rho": 0.3, "capture": "replay"}, **ONE_STEP)


@pytest.mark.parametrize("m", [None, 1, 3])
@pytest.mark.parametrize("name", ["padding", "checkpointing", "evaluation"])
def test_step_is_that_of_sam_by_hand(name, m, tmp_path):
    options = {**FEATURES[name], **ONE_STEP}
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3, "m": m, "engine": "loop"}, **options)
    size = m or 4
    groups = [TEXTS[i : min(i + size, 4)] for i in range(0, 4, size)]
    assert relative_error(moved(trainer), gradient_by_hand(language_model(), groups, 0.3)) < 1e-12
    assert relative_error(moved(trainer), gradient_by_hand(language_model(), groups, 0.0)) > 1e-2


def test_padded_texts_run_at_once(tmp_path):
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3, "m": 1, "engine": "batched"}, **ONE_STEP)
    expected = gradient_by_hand(language_model(), [[row] for row in TEXTS[:4]], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


def test_accumulated_micro_batches_climb_by_themselves_and_count_by_tokens(tmp_path):
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3}, **ONE_STEP, gradient_accumulation_steps=3)
    groups = [TEXTS[0:4], TEXTS[4:8], TEXTS[8:12]]
    assert relative_error(moved(trainer), gradient_by_hand(language_model(), groups, 0.3)) < 1e-12


@pytest.mark.parametrize("accumulated", [1, 2])
def test_climb_that_is_not_normalized_sees_the_mean_over_the_tokens_of_a_group(accumulated, tmp_path):
    """Whatever is accumulated: its length is that of the gradient."""
    from lowland.sam import Unnormalized

    sam = {"rho": 0.3, "m": 2, "ascent": Unnormalized(), "engine": "loop"}
    trainer = run(SAMTrainer, tmp_path, sam, **ONE_STEP, gradient_accumulation_steps=accumulated)
    found = [torch.zeros_like(p) for p in language_model().parameters()]
    groups = [TEXTS[i : i + 2] for i in range(0, 4 * accumulated, 2)]
    total = sum(of_texts(group)[1] for group in groups)
    for loss, count in map(of_texts, groups):
        twin = language_model().train()
        g = torch.autograd.grad(loss(twin), list(twin.parameters()))
        with torch.no_grad():
            for p, t in zip(twin.parameters(), g, strict=True):
                p += 0.3 * t
        g = torch.autograd.grad(loss(twin), list(twin.parameters()))
        found = [f + count / total * t for f, t in zip(found, g, strict=True)]
    assert relative_error(moved(trainer), found) < 1e-12


def test_loss_of_the_users_is_minimized_by_hand(tmp_path):
    trainer = run(
        SAMTrainer, tmp_path, {"rho": 0.3, **LOOP}, **ONE_STEP, given={"compute_loss_func": squares}
    )

    def of_text(row):
        batch = padded([row])
        labels = batch.pop("labels")
        return lambda model: squares(model(**batch), labels)

    counts = [of_texts([row])[1] for row in TEXTS[:4]]
    expected = sam_by_hand(language_model(), map(of_text, TEXTS[:4]), counts, 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


def test_smoothed_labels_are_minimized_by_hand(tmp_path):
    """The smoothing of transformers sums in float32."""
    options = {**ONE_STEP, "label_smoothing_factor": 0.2}
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3, **LOOP}, **options)

    def of_text(row):
        labels = torch.tensor(row["labels"][1:])

        def loss(model):
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            found = logits.log_softmax(1)
            right = F.nll_loss(found, labels, reduction="sum", ignore_index=-100)
            rest = -(found.mean(1) * (labels != -100)).sum()
            return (0.8 * right + 0.2 * rest) / (labels != -100).sum()

        return loss

    counts = [of_texts([row])[1] for row in TEXTS[:4]]
    expected = sam_by_hand(language_model(), map(of_text, TEXTS[:4]), counts, 0.3)
    assert relative_error(moved(trainer), expected) < 1e-6


def test_labels_of_other_names_count_as_examples(tmp_path):
    options = FEATURES["label_names"]
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3, **LOOP}, **{**options, **ONE_STEP})

    def of_question(row):
        return lambda model: model(**{key: torch.tensor([value]) for key, value in row.items()}).loss

    expected = sam_by_hand(answers(), map(of_question, QUESTIONS[:8]), [1] * 8, 0.3)
    assert relative_error(moved(trainer, answers()), expected) < 1e-12


def test_bfloat16_is_autocast_in_every_pass(tmp_path):
    """Weights of float32, products of bfloat16: by hand, text by text as in the loop."""
    trainer = run(
        SAMTrainer,
        tmp_path,
        {"rho": 0.3, **LOOP},
        model=lambda: language_model().float(),
        bf16=True,
        **ONE_STEP,
    )

    def of_row(i):
        batch = {key: value[i : i + 1] for key, value in padded(TEXTS[:4]).items()}

        def loss(model):
            with torch.autocast("cpu", torch.bfloat16):
                found = model(**batch)
            return causal(found.logits.float(), batch["labels"])

        return loss

    def causal(logits, labels):
        return F.cross_entropy(logits[0, :-1], labels[0, 1:])

    counts = [of_texts([row])[1] for row in TEXTS[:4]]
    expected = sam_by_hand(language_model().float(), map(of_row, range(4)), counts, 0.3)
    assert relative_error(moved(trainer, language_model().float()), expected) < 1e-5
    assert (
        relative_error(
            moved(trainer, language_model().float()), gradient_by_hand(language_model(), [TEXTS[:4]], 0.3)
        )
        > 1e-3
    )


def test_norm_that_is_logged_and_clipped_is_that_of_sams_gradient(tmp_path):
    options = {**ONE_STEP, "max_grad_norm": 0.1, "logging_strategy": "steps", "logging_steps": 1}
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3}, **options)
    expected = gradient_by_hand(language_model(), [TEXTS[:4]], 0.3)
    length = torch.cat([g.flatten() for g in expected]).norm().item()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(length, rel=1e-6)
    clipped = [g * 0.1 / (length + 1e-6) for g in expected]
    assert relative_error(moved(trainer), clipped) < 1e-10


def test_micro_batch_without_a_label_that_counts_adds_nothing(tmp_path):
    data = copy.deepcopy(TEXTS)
    for row in data[:4]:
        row["labels"] = [-100] * len(row["labels"])
    options = {**ONE_STEP, "gradient_accumulation_steps": 2, "data": data}
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3, **LOOP}, **options)
    expected = gradient_by_hand(language_model(), [[row] for row in data[4:8]], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


class Squared(SAMTrainer):
    """A subclass with a loss of its own, as a trainer that was made from another has."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        return (loss**2, outputs) if return_outputs else loss**2


def test_loss_of_a_subclass_is_what_is_minimized(tmp_path):
    trainer = run(Squared, tmp_path, {"rho": 0.3}, **ONE_STEP)
    loss, _ = of_texts(TEXTS[:4])
    expected = sam_by_hand(language_model(), [lambda model: loss(model) ** 2], [1], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12
    assert trainer.sam.steps_done == 1


class Mixed:
    """A loss that stands before the trainer among the bases."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        return (loss**2, outputs) if return_outputs else loss**2


class SAMMixed(Mixed, SAMTrainer):
    pass


class SAMMixedAgain(SAMMixed):
    pass


@pytest.mark.parametrize("kind", [SAMMixed, SAMMixedAgain])
def test_loss_of_a_base_before_the_trainer_is_what_is_minimized(tmp_path, kind):
    trainer = run(kind, tmp_path, {"rho": 0.3}, **ONE_STEP)
    loss, _ = of_texts(TEXTS[:4])
    expected = sam_by_hand(language_model(), [lambda model: loss(model) ** 2], [1], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


class OfMeans(transformers.Trainer):
    """Has a mean of its own, which the trainer divides by the number of micro-batches."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, *_, **__):
        labels = inputs.pop("labels")
        return squares(model(**inputs), labels)


class SAMOfMeans(SAMTrainerMixin, OfMeans):
    pass


@pytest.mark.parametrize("m", [None, 1])
def test_mean_that_the_trainer_divides_is_not_scaled_twice(m, tmp_path):
    options = {**ONE_STEP, "gradient_accumulation_steps": 2}
    plain = run(OfMeans, tmp_path, **options)
    sharp = run(SAMOfMeans, tmp_path, {"rho": 0.0, "m": m, "engine": "loop"}, **options)
    assert relative_error(moved(sharp), moved(plain)) < 1e-12


def test_trainer_in_training_mode_evaluates_plainly_without_gradients(tmp_path):
    trainer = run(SAMTrainer, tmp_path, {"rho": 0.3}, max_steps=1)
    trainer.model.train()
    steps, batch = trainer.sam.steps_done, padded(TEXTS[:4])
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(of_texts(TEXTS[:4])[0](trainer.model).item(), rel=1e-12)
    assert trainer.sam.steps_done == steps


@pytest.mark.usefixtures("untyped")
def test_several_devices_in_a_process_and_deepspeed_are_refused(tmp_path):
    class Two(transformers.TrainingArguments):
        n_gpu = 2

    given = {"model": nn.Linear(1, 1), "sam": {"rho": 0.1}}
    with pytest.raises(ValueError, match="must have one device in each process, got 2 in one"):
        SAMTrainer(args=Two(str(tmp_path), use_cpu=True, report_to=[]), **given)

    class Deep(SAMTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True

    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match="must train without DeepSpeed"):
        Deep(args=args, **given)
