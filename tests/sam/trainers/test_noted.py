"""Trainers whose loss notes numbers for their logs, and other subclasses."""

import inspect
from collections import defaultdict, deque

import pytest
import torch

from lowland.sam import PreviousBatch, Random
from lowland.sam.trainers.noted import Noted

from ..naive import relative_error

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("lowland.sam.trainers.huggingface")

from .tiny import ONE_STEP, gradient_by_hand, language_model, moved, texts, trained  # noqa: E402

TEXTS = texts()


class Noting(transformers.Trainer):
    """Notes in all the ways that there are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls, self.rows, self.last = 0, [], None
        self.metrics = {"train": defaultdict(list)}
        self.total = torch.zeros((), dtype=torch.float64)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = found[0] if return_outputs else found
        if model.training:
            self.calls += 1
            self.rows.append(len(inputs["input_ids"]))
            self.last = value.item()
            self.metrics["train"]["loss"].append(value.item())
            self.metrics["train"]["calls"] = [self.calls]
            self.total += value.detach()
        return found

    def noted(self):
        return self.calls, self.rows, self.last, dict(self.metrics["train"]), self.total.item()


def test_notes_in_tuples_and_queues_are_seen_and_put_back():
    class Owner:
        pass

    owner = Owner()
    owner.pair, owner.queue = (1.0, 2.0), deque([1.0], maxlen=3)
    noted = Noted(owner)
    assert not noted.changed()
    owner.pair = (1.0, 3.0)
    owner.queue.append(2.0)
    assert noted.changed()
    noted.put_back()
    assert (owner.pair, list(owner.queue), owner.queue.maxlen) == ((1.0, 2.0), [1.0], 3)


class SAMNoting(huggingface.SAMTrainerMixin, Noting):
    pass


def noted(tmp_path, sam=None, **options):
    trainer = trained(Noting if sam is None else SAMNoting, tmp_path, sam=sam, **options)
    return trainer.noted()


@pytest.mark.parametrize("steps", [1, 3])
def test_notes_are_those_of_the_trainer(steps, tmp_path):
    """Of its first step: in the next ones the weights are others."""
    options = {"max_steps": 1, "gradient_accumulation_steps": 1}
    assert noted(tmp_path, {"rho": 0.3, "steps": steps}, **options) == noted(tmp_path, **options)


def test_notes_of_groups_are_those_of_so_many_small_batches(tmp_path):
    """As a trainer makes them that accumulates batches of one text; losses are then shares of the step's."""
    calls, rows, _, metrics, total = noted(tmp_path, {"rho": 0.3, "m": 1, "engine": "loop"}, max_steps=1)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    expected = noted(tmp_path, **small)
    assert (calls, rows, metrics["calls"]) == (4, [1] * 4, [4]) == (*expected[:2], expected[3]["calls"])
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in TEXTS[:4]]
    shares = [value * count / sum(counts) for value, count in zip(metrics["loss"], counts, strict=True)]
    assert shares == pytest.approx(expected[3]["loss"], rel=1e-12)
    assert total == pytest.approx(sum(metrics["loss"]), rel=1e-12)


def test_examples_that_only_the_climb_sees_are_not_noted(tmp_path):
    calls, rows, *_ = noted(tmp_path, {"rho": 0.3, "source": PreviousBatch()}, max_steps=3)
    assert (calls, rows) == (3, [4, 4, 4])


def test_only_pass_is_noted_where_it_is_perturbed(tmp_path):
    calls, rows, *_ = noted(tmp_path, {"rho": 0.3, "ascent": Random()}, max_steps=2)
    assert (calls, rows) == (2, [4, 4])


def test_evaluation_inside_training_notes_nothing(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "given": {"eval_dataset": TEXTS[:3]}}
    assert noted(tmp_path, {"rho": 0.3}, max_steps=2, **options)[0] == 2


@pytest.mark.usefixtures("untyped")
def test_notes_of_an_error_are_put_back(tmp_path):
    class Failing(SAMNoting):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            raise FloatingPointError

    trainer = Failing(
        model=language_model(),
        args=transformers.TrainingArguments(str(tmp_path), report_to=[]),
        sam={"rho": 1.0},
    )
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(FloatingPointError):
        trainer.compute_loss(trainer.model.train(), batch)
    assert trainer.noted() == (0, [], None, {}, 0.0)


class Counting(huggingface.SAMTrainer):
    """Notes what could be noted for all groups at once, and would be wrong."""

    calls = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.calls = self.calls + 1
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.usefixtures("untyped")
def test_notes_are_refused_where_groups_run_at_once(tmp_path):
    with pytest.raises(RuntimeError, match="got numbers that the loss notes on the trainer"):
        trained(Counting, tmp_path, sam={"rho": 0.3, "m": 1, "engine": "batched"}, max_steps=1)


def test_loss_that_notes_is_minimized(tmp_path):
    trainer = trained(SAMNoting, tmp_path, sam={"rho": 0.3, "m": 2, "engine": "loop"}, **ONE_STEP)
    expected = gradient_by_hand(language_model(), [TEXTS[:2], TEXTS[2:4]], 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12


@pytest.mark.usefixtures("untyped")
def test_mixin_behind_the_trainer_is_refused():
    with pytest.raises(
        TypeError, match="must stand before the trainer among the bases, got it behind in Late"
    ):

        class Late(transformers.Trainer, huggingface.SAMTrainerMixin):
            pass


def test_subclass_shows_its_options():
    class Own(huggingface.SAMTrainer):
        def __init__(self, folder, *, sam):
            super().__init__(folder, sam=sam)

    class Same(SAMNoting):
        pass

    assert list(inspect.signature(Own).parameters) == ["folder", "sam"]
    assert list(inspect.signature(Same).parameters) == ["args", "sam", "kwargs"]
    of_trainer = list(inspect.signature(transformers.Seq2SeqTrainer).parameters)

    class Seq2Seq(huggingface.SAMTrainerMixin, transformers.Seq2SeqTrainer):
        pass

    assert list(inspect.signature(Seq2Seq).parameters) == [*of_trainer, "sam"]


def test_long_lists_are_cut_and_short_ones_copied():
    class Owner:
        def __init__(self):
            self.short, self.long, self.deep = [1, 2], list(range(100)), {"a": {"b": [1.0]}}
            self.itself = [self.short]
            self.itself.append(self.itself)

    owner = Owner()
    long, deep = owner.long, owner.deep
    noted = Noted(owner)
    assert not noted.changed()
    owner.short[0] = 7
    owner.long.append(1)
    owner.deep["a"]["b"].append(2.0)
    owner.deep["c"] = 1
    owner.long = [0]
    assert noted.changed()
    noted.put_back()
    assert (owner.short, owner.long, owner.deep) == ([1, 2], list(range(100)), {"a": {"b": [1.0]}})
    assert owner.long is long
    assert owner.deep is deep
    assert not noted.changed()
