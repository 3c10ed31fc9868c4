"""Everything that a training step changes, and the step itself."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.deep.averaging import WeightAverage
from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData, to_float
from lowland.deep.new_network import new_network
from lowland.deep.objective import Objective
from lowland.deep.optimizer import build_optimizer
from lowland.deep.schedules import label_noise_factor, learning_rate_factor
from lowland.deep.seeding import derive_seed, seed_all
from lowland.deep.trial import require_meaning, tried
from lowland.deep.weights import load_weights
from lowland.errors import InputError
from lowland.sam import L2, SAM, Ascent, ClippedUnnormalized, Unnormalized, magnitude_only, perturbed
from lowland.sam.captures import reason_against
from lowland.sam.choice import Capture


class TrainState:
    """A network in training.

    Whatever is random in a step is a function of the seed, the epoch, the iteration and what it is for;
    so there is no generator state to keep, and runs that differ in one option see the same draws.

    Args:
        config: The run.
        data: Its data.
        device: Where it trains.
        fresh: Whether it begins with the weights that the config names; a checkpoint's follow otherwise.
        beside: Where a run is looked for that ``model_path`` names without saying where it is.

    Attributes:
        model: The network.
        average: The running average of its weights.
        criterion: How its outputs are judged.
        train: The training examples, fewer after some were removed.
        kept: Rows of the original training examples that ``train`` consists of.
        epoch: Current epoch, from 1; the number of epochs plus 1 after the last.
        iteration: Steps done in this epoch.
        steps: Steps done in all.
        sums: Sums of the objective, the loss and the errors over the examples since they were last reset.
        seen: The number of those examples.
        last_learning_rate: Of the last step.
        last_rho: Radius of the last step.
        best: Error on the validation examples, and weights, of the best evaluation so far, by kind.

    Raises:
        InputError: If data, network and loss do not go together, or the data are too few for a step.

    Example:
        >>> import torch
        >>> from lowland.deep import TrainConfig, TrainState, load_data
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", batch_size=300, sam_rho=0.1)
        >>> state = TrainState(config, load_data(config), torch.device("cpu"))
        >>> state.step()
        >>> state.steps, state.seen, state.last_rho
        (1, 300, 0.1)
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        device: torch.device,
        *,
        fresh: bool = True,
        beside: Path | None = None,
    ) -> None:
        self.config = config
        self.data = replace(
            data,
            train=data.train.to(device),
            validation=data.validation.to(device),
            test=data.test.to(device),
        )
        self.device = device
        require_meaning(config, data)
        seed_all(derive_seed(config.seed, "initialization"))
        self.model = new_network(config, data).to(device)
        self.criterion = tried(config, self.model, self.data)
        if config.model_path is not None and fresh:
            load_weights(self.model, _start(config.model_path, beside), kind=config.model_type)
        set_training_mode(self.model, freeze_batch_norm=config.freeze_bn_stats)
        self.average = WeightAverage(self.model, config.swa_tau)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config, self.params)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.half_prec == "fp16")
        self.sam = SAM(
            self.model,
            rho=0.0,
            m=config.group_size,
            ascent=_ascent(config),
            steps=config.sam_iters,
            step_size=config.sam_step_size_mult,
            l2=config.l2_reg,
            combine=magnitude_only if config.only_sam_step_size else None,
            bn_stats=config.bn_stats,
            engine=config.engine,
            capture=_capture(config),
        )
        self.objective = Objective(config, self.model, self.criterion)
        self.epoch, self.iteration, self.steps = 1, 0, 0
        self.kept = torch.arange(len(self.data.train), device=device)
        self.train = self.data.train
        self.previous: tuple[Tensor, ...] | None = None
        self.best: dict[str, tuple[float, dict[str, Tensor]]] = {}
        self.last_learning_rate, self.last_rho = 0.0, 0.0
        self.reset_sums()
        self._learning_rate = learning_rate_factor(config.lr_schedule, config.epochs)
        self._label_noise = label_noise_factor(config.ln_schedule)
        self._augmentation = config.augmentation
        self._order: tuple[int, Tensor] | None = None
        self._require_batches()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; an incomplete last batch is dropped."""
        return len(self.train) // self.config.batch_size

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return self.config.lr_max * self._learning_rate(self._share)

    @property
    def rho(self) -> float:
        """Radius of the step that comes next; 0 outside the window of SAM."""
        config = self.config
        share = self.epoch / config.epochs
        if not config.sam_epoch_frac_start <= share <= config.sam_epoch_frac_end:
            return 0.0
        return config.sam_rho or config.sam_lr_mult * self.learning_rate

    def step(self) -> None:
        """One step of the optimizer."""
        config = self.config
        *inputs, targets = self._next_batch()
        self.last_learning_rate, self.last_rho = self.learning_rate, self.rho
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_learning_rate
        self.sam.rho = self.last_rho
        climb_on_previous = config.sam_use_prev_batch and self.previous is not None and self.sam.rho > 0
        if config.has_own_model or config.has_own_loss:
            seed_all(self._seed("dropout"))
        elif config.droprate > 0:
            torch.manual_seed(self._seed("dropout"))
        self.optimizer.zero_grad()
        with self._weight_noise():
            value, aux = self.sam.backward(
                self.objective,
                *inputs,
                targets,
                scale=self.scaler,
                ascent_batch=self.previous if climb_on_previous else None,
            )
        self.scaler.unscale_(self.optimizer)
        self._add_gradient_noise()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model)
        self.previous = (*inputs, targets) if config.sam_use_prev_batch else None
        wrong = aux["error"].sum() if "error" in aux else value.new_zeros(())
        self.sums += torch.stack([value * len(targets), aux["loss"].sum(), wrong])
        self.seen += len(targets)
        self.iteration += 1
        self.steps += 1

    def next_epoch(self) -> None:
        """To the beginning of the next epoch."""
        self.epoch += 1
        self.iteration = 0

    def reset_sums(self) -> None:
        """Forgets what was summed over the steps."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=dtype, device=self.device)
        self.seen = 0

    def keep(self, rows: Tensor) -> None:
        """Trains on these rows of the original training examples from now on.

        Args:
            rows: Positions among them, rising.
        """
        self.kept = rows
        self.train = self.data.train.select(rows)
        self._order = None

    def remember_best(self, kind: str, error: float, model: nn.Module) -> None:
        """Keeps a copy of ``model`` as ``kind`` if its validation ``error`` is the lowest so far."""
        if kind not in self.best or error < self.best[kind][0] or math.isnan(self.best[kind][0]):
            self.best[kind] = (error, {k: v.detach().clone() for k, v in model.state_dict().items()})

    @property
    def _share(self) -> float:
        """Share of the training done after the step that comes next."""
        return (self.epoch - 1 + (self.iteration + 1) / self.steps_per_epoch) / self.config.epochs

    def _next_batch(self) -> tuple[Tensor, ...]:
        config = self.config
        start = self.iteration * config.batch_size
        rows = self._epoch_order()[start : start + config.batch_size]
        # index_select copies whole images, several times as fast as indexing on the CPU.
        inputs, *mask = (argument.index_select(0, rows) for argument in self.train.arguments)
        targets = self.train.targets.index_select(0, rows)
        if self._augmentation is not None:
            inputs = self._augmentation(inputs, self._generator("augmentation"))
        return (to_float(inputs), *mask, self._redrawn(targets))

    def _require_batches(self) -> None:
        if self.steps_per_epoch == 0:
            raise InputError(
                f"batch_size must be at most the number of training examples, {len(self.train)}, "
                f"got {self.config.batch_size}."
            )
        left = len(self.train) - round(self.config.n_rm_pts * len(self.train))
        if left < self.config.batch_size:
            raise InputError(
                f"n_rm_pts must leave at least a batch of {self.config.batch_size} training examples, "
                f"leaves {left}."
            )

    def _epoch_order(self) -> Tensor:
        if self._order is None or self._order[0] != self.epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "order", self.epoch))
            order = torch.randperm(len(self.train), generator=generator)
            self._order = (self.epoch, order.to(self.device))
        return self._order[1]

    def _redrawn(self, labels: Tensor) -> Tensor:
        if self.config.sgd_p_label_noise == 0:
            return labels
        probability = self.config.sgd_p_label_noise * self._label_noise(self._share)
        generator = self._generator("label noise")
        chosen = torch.rand(labels.shape, generator=generator, device=self.device) < probability
        drawn = torch.randint(self.data.num_classes, labels.shape, generator=generator, device=self.device)
        return torch.where(chosen, drawn, labels)

    def _weight_noise(self) -> AbstractContextManager[object]:
        add, mul = self.config.add_weight_perturb_scale, self.config.mul_weight_perturb_scale
        if add == 0 and mul == 0:
            return nullcontext()
        generator = self._generator("weight noise")
        noise = [
            mul * self._noise(p, generator) * p.detach() + add * self._noise(p, generator)
            for p in self.params
        ]
        return perturbed(self.params, noise)

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.weight_perturb_distr == "gauss":
            return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) - 0.5

    def _add_gradient_noise(self) -> None:
        if self.config.grad_gauss_std == 0:
            return
        generator = self._generator("gradient noise")
        for p in self.params:
            if p.grad is not None:
                noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
                p.grad.add_(noise, alpha=self.config.grad_gauss_std)

    def _seed(self, purpose: str) -> int:
        return derive_seed(self.config.seed, purpose, self.epoch, self.iteration)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._seed(purpose))


def set_training_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    """Training mode, except for batch norms that are to keep and use their running statistics."""
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _start(model_path: str, beside: Path | None) -> Path:
    """Where the weights are: the path itself, or the run of that name."""
    path = Path(model_path)
    return path if beside is None or path.exists() or not (beside / path).exists() else beside / path


def _capture(config: TrainConfig) -> Capture:
    """Steps of a loss of ours are recorded: with the same engine nothing changes but the time they take."""
    ours = not (config.has_own_model or config.has_own_loss)
    differentiates = config.weight_grad_reg_lambda + config.input_grad_reg_lambda + config.jac_reg_lambda > 0
    why = reason_against(_ascent(config), engine=config.engine)
    return "replay" if ours and not differentiates and why is None else "off"


def _ascent(config: TrainConfig) -> Ascent:
    if not config.sam_no_grad_norm:
        return L2()
    return ClippedUnnormalized() if config.sam_clip else Unnormalized()
