"""``SAMTraining`` and ``SAMOptimizer`` in Lightning's own ``Trainer``, against plain loops."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM, SAMOptimizer, presets

from ..naive import bits, buffers_of, mlp, regression, relative_error, seeded, squared

pl = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")
SAMTraining = pytest.importorskip("lowland.sam.trainers.lightning").SAMTraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

EXAMPLES, BATCH = 12, 5


def data(dtype=torch.float64):
    """Batches of 5, 5 and 2."""
    return DataLoader(TensorDataset(*regression(examples=EXAMPLES, dtype=dtype)), batch_size=BATCH)


class Regressor(pl.LightningModule):
    """As its user wrote it, without SAM."""

    def __init__(self, net=None):
        super().__init__()
        self.net = mlp() if net is None else net

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        x, y = batch
        loss = squared(self.net, x, y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1, momentum=0.9)


class Sharp(SAMTraining, Regressor):
    def __init__(self, make=presets.sam, net=None, **options):
        super().__init__(net)
        self.make = functools.partial(make, **options)

    def configure_sam(self):
        return self.make(self)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        **{"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, **quiet, **options}
    )


def fit(module, dtype=torch.float64, **options):
    """Trained; a seed for what it draws."""
    torch.manual_seed(0)
    running = trainer(**options)
    running.fit(module, data(dtype))
    return running


def plain_loop(
    make=presets.sam, *, net=None, epochs=2, accumulate=1, clip=None, dtype=torch.float64, **options
):
    """What Lightning is to do: gradients are divided by the number of batches that accumulate."""
    net = mlp() if net is None else net
    base, sam = SGD(net.parameters(), lr=0.1, momentum=0.9), make(net, **options)
    autocast = torch.autocast("cpu", torch.bfloat16) if dtype == torch.float32 else nullcontext()
    torch.manual_seed(0)
    for _ in range(epochs):
        loader = data(dtype)
        for i, (x, y) in enumerate(loader, 1):
            with autocast:
                sam.backward(functools.partial(squared, net), x, y, scale=1.0 / accumulate)
            if i % accumulate == 0 or i == len(loader):
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                base.step()
                base.zero_grad()
    return net


def error(module, net):
    return relative_error(list(module.net.parameters()), list(net.parameters()))


def weights(module):
    return [bits(p) for p in module.parameters()]


@pytest.mark.parametrize("m", [None, 1, 2])
def test_training_is_the_plain_loop_with_backward(m):
    module = Sharp(rho=0.4, m=m)
    fit(module)
    assert error(module, plain_loop(rho=0.4, m=m)) < 1e-13
    assert error(module, plain_loop(rho=0.0)) > 1e-3


def test_radius_zero_is_training_without_sam():
    sharp, plain = Sharp(rho=0.0), Regressor()
    fit(sharp)
    fit(plain)
    assert weights(sharp) == weights(plain)


def test_accumulated_batches_climb_each_by_itself_and_their_mean_is_clipped():
    module = Sharp(rho=0.4, m=3)
    fit(module, accumulate_grad_batches=2, gradient_clip_val=0.05)
    assert error(module, plain_loop(rho=0.4, m=3, accumulate=2, clip=0.05)) < 1e-13
    assert error(module, plain_loop(rho=0.4, m=3, accumulate=2)) > 1e-3, "clipping did something"


def test_both_passes_are_made_in_the_trainers_precision():
    module = Sharp(rho=0.4, m=3, net=mlp(dtype=torch.float32))
    fit(module, torch.float32, precision="bf16-mixed")
    expected = plain_loop(rho=0.4, m=3, net=mlp(dtype=torch.float32), dtype=torch.float32)
    assert error(module, expected) < 1e-6
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_dropout_and_batch_norm_follow_the_policy_of_sam():
    def net():
        return seeded(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)))

    module = Sharp(rho=0.4, net=net())
    fit(module)
    expected = plain_loop(rho=0.4, net=net())
    assert error(module, expected) < 1e-13
    assert buffers_of(module.net) == buffers_of(expected)
    assert module.net[1].num_batches_tracked.item() == 6


class DictRegressor(Regressor):
    def training_step(self, batch, batch_idx):  # noqa: ARG002
        predictions = self.net(batch["x"])
        loss = (predictions - batch["y"]).square().mean()
        return {"loss": loss, "predictions": predictions, "note": "not a tensor"}


class SharpFromDicts(SAMTraining, DictRegressor):
    def configure_sam(self):
        return SAM(self, rho=0.4, m=2)

    def on_train_batch_start(self, batch, batch_idx):  # noqa: ARG002
        self.before = copy.deepcopy(self.net)

    def on_train_batch_end(self, outputs, batch, batch_idx):  # noqa: ARG002
        with torch.no_grad():
            expected = self.before(batch["x"])
        assert torch.allclose(outputs["predictions"], expected, rtol=1e-13, atol=0)
        assert not outputs["predictions"].requires_grad
        assert outputs["loss"].item() == pytest.approx(squared(self.before, batch["x"], batch["y"]).item())


def test_dictionaries_come_in_and_go_out_at_the_unperturbed_weights():
    module = SharpFromDicts()
    x, y = regression(examples=EXAMPLES)
    loader = DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=BATCH)
    trainer().fit(module, loader)
    assert error(module, plain_loop(rho=0.4, m=2)) < 1e-13


class Logging(Regressor):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, on_step=False, on_epoch=True)
        self.log_dict({"twice": 2.0 * loss}, on_step=False, on_epoch=True)
        return loss


class SharpLogging(SAMTraining, Logging):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def configure_sam(self):
        return SAM(self, rho=0.4, **self.options)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("m", [None, 3])
def test_only_the_unperturbed_weights_are_logged_as_the_mean_over_groups(m, engine):
    module = SharpLogging(m=m, engine=engine)
    net, total = copy.deepcopy(module.net), 0.0
    module.configure_optimizers = lambda: SGD(module.parameters(), lr=0.0)
    logged = trainer(max_epochs=1)
    logged.fit(module, data())
    for x, y in data():
        total += squared(net, x, y).item() * len(x) / EXAMPLES
    found = {name: value.item() for name, value in logged.callback_metrics.items()}
    assert found == pytest.approx({"loss": squared(net, x, y).item(), "mean": total, "twice": 2.0 * total})


def test_what_is_logged_is_not_lost_to_a_step_of_another_optimizer_that_was_given_up():
    other = mlp()
    optimizer = SAMOptimizer(SGD(other.parameters(), lr=0.1), rho=0.4)
    squared(other, *regression()).backward()
    optimizer.first_step()
    module = SharpLogging()
    logged = trainer(max_epochs=1)
    logged.fit(module, data())
    assert {"loss", "mean", "twice"} == set(logged.callback_metrics)


class Measured(Regressor):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        x, y = batch
        predictions = self.net(x)
        self.error(predictions, y)
        self.log("error", self.error, on_step=False, on_epoch=True)
        return (predictions - y).square().mean()

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.0)


class SharpMeasured(SAMTraining, Measured):
    def configure_sam(self):
        return SAM(self, rho=0.4)


def test_metrics_see_the_unperturbed_weights_only():
    """A metric that is logged as an object sums up what it was called with, whether or not it is logged."""
    module = SharpMeasured()
    x, y = regression(examples=EXAMPLES)
    running = fit(module, max_epochs=1)
    expected = squared(module.net, x, y).item()
    assert running.callback_metrics["error"].item() == pytest.approx(expected, rel=1e-5)


def test_schedule_of_rho_counts_the_trainers_steps():
    """Lightning clears the gradients of a step after the next training step has begun."""
    asked = []

    def rho(step):
        asked.append(step)
        return 0.4 if step % 2 else 0.0

    module = Sharp(rho=rho)
    fit(module)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert error(module, plain_loop(rho=lambda step: 0.4 if step % 2 else 0.0)) < 1e-13
    accumulating = Sharp(rho=rho)
    asked.clear()
    fit(accumulating, accumulate_grad_batches=2)
    assert asked == [0, 0, 1, 2, 2, 3]


class OnlyTheBatch(Regressor):
    def training_step(self, batch):
        return squared(self.net, *batch)


class SharpOnlyTheBatch(SAMTraining, OnlyTheBatch):
    def configure_sam(self):
        return SAM(self, rho=0.4)


def test_training_step_may_take_the_batch_alone():
    """Lightning passes ``batch_idx`` only to those that take it."""
    fit(OnlyTheBatch())
    module = SharpOnlyTheBatch()
    fit(module)
    assert error(module, plain_loop(rho=0.4)) < 1e-13


class Evaluated(Sharp):
    def validation_step(self, batch, batch_idx):  # noqa: ARG002
        self.log("validated", squared(self.net, *batch))


def test_validation_is_without_sam():
    module = Evaluated(rho=0.4)
    running = trainer(max_epochs=1)
    running.fit(module, data(), data())
    steps, loss = module.sam.steps_done, running.callback_metrics["validated"].item()
    assert steps == 3
    running.validate(module, data(), verbose=False)
    assert module.sam.steps_done == steps
    assert running.callback_metrics["validated"].item() == loss


@pytest.mark.usefixtures("untyped")
def test_module_that_does_not_say_which_sam_is_told():
    class Unfinished(SAMTraining, Regressor):
        pass

    with pytest.raises(NotImplementedError, match=r"configure_sam must return a lowland\.SAM, got no such"):
        trainer().fit(Unfinished(), data())


# Checkpoints


STATEFUL = {
    "friendly": functools.partial(Sharp, presets.friendly_sam, rho=0.4, m=3),
    "look": functools.partial(Sharp, presets.look_sam, rho=0.4, k=4),
}


def continued(make, tmp_path):
    """Two epochs, a checkpoint, a new module from it, and two more epochs; and four in one go."""
    torch.manual_seed(0)
    whole, first, second = make(), make(), make()
    trainer(max_epochs=4).fit(whole, data())
    running = trainer()
    running.fit(first, data())
    running.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainer(max_epochs=4)
    resumed.fit(second, data(), ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == 12
    return second, whole


@pytest.mark.parametrize("name", STATEFUL)
def test_checkpoint_resumes_identically(name, tmp_path):
    resumed, whole = continued(STATEFUL[name], tmp_path)
    assert resumed.sam.steps_done == whole.sam.steps_done == 12
    assert weights(resumed) == weights(whole)


class WithGSAM(SAMTraining, Regressor):
    """A variant that is given the optimizer, which there is not yet when a checkpoint is read."""

    def configure_sam(self):
        (optimizer,) = self.trainer.optimizers
        return presets.gsam(self, optimizer=optimizer, max_rho=0.4, max_lr=0.2)


def test_checkpoint_of_a_variant_that_needs_the_optimizer_resumes_identically(tmp_path):
    resumed, whole = continued(WithGSAM, tmp_path)
    assert resumed.sam.steps_done == whole.sam.steps_done == 12
    assert weights(resumed) == weights(whole)


@pytest.mark.parametrize("cls", [Sharp, WithGSAM])
def test_checkpoint_is_read_for_inference_without_a_trainer(cls, tmp_path):
    module, running = cls(), trainer(max_epochs=1)
    running.fit(module, data())
    running.save_checkpoint(tmp_path / "end.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert weights(loaded) == weights(module)


def test_checkpoint_of_training_without_sam_is_continued_with_it(tmp_path):
    running = trainer(max_epochs=1)
    running.fit(Regressor(), data())
    running.save_checkpoint(tmp_path / "plain.ckpt")
    module = Sharp(rho=0.4)
    trainer().fit(module, data(), ckpt_path=tmp_path / "plain.ckpt")
    assert module.sam.steps_done == 3


# The optimizer


class Wrapped(Regressor):
    def configure_optimizers(self):
        optimizer = SAMOptimizer(super().configure_optimizers(), rho=0.4, module=self.net)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]


def test_optimizer_of_sam_works_in_automatic_optimization():
    """Clipping is done in both evaluations: it does not turn the climb."""
    module = Wrapped()
    running = fit(module, gradient_clip_val=0.05)
    assert error(module, plain_loop(rho=0.4, clip=0.05)) < 1e-13
    assert running.global_step == 6


def test_optimizer_of_sam_resumes_identically(tmp_path):
    resumed, whole = continued(Wrapped, tmp_path)
    assert weights(resumed) == weights(whole)
