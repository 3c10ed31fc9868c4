"""Everything that a training step changes, and the step itself."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowland.deep.averaging import WeightAverage, set_training_mode
from lowland.deep.composed import composed, moving, require_composable
from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData
from lowland.deep.draws import draws_of
from lowland.deep.models import example_keys
from lowland.deep.new_network import new_network
from lowland.deep.objective import Objective, as_given
from lowland.deep.optimizer import build_optimizer
from lowland.deep.processes import ranks
from lowland.deep.schedules import label_noise_factor, learning_rate_factor
from lowland.deep.seeding import derive_seed, seed_all
from lowland.deep.share import require_shareable, share_of
from lowland.deep.summed import SummedGradients
from lowland.deep.trial import require_meaning, tried
from lowland.deep.weights import load_weights
from lowland.errors import InputError
from lowland.sam import L2, SAM, Ascent, ClippedUnnormalized, Unnormalized, magnitude_only, perturbed
from lowland.sam.captures import reason_against
from lowland.sam.choice import Capture


class TrainState:
    """A network in training.

    Whatever is random in a step is a function of the seed, the epoch, the iteration and what it is for;
    so there is no generator state to keep, and runs that differ in one option see the same draws. Where
    ``torch.distributed`` has a group, its processes train the network together.

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
        ranks: Which process of how many this is.
        share: The part of each batch that it trains on.
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
        self.ranks = ranks()
        self.share = share_of(config, self.ranks)
        _require_type(config, device)
        seed_all(derive_seed(config.seed, "initialization"))
        self.model = new_network(config, data).to(device)
        self.criterion = tried(config, self.model, self.data)
        self._draws = draws_of(config, self.model, self.data, self.criterion, self.ranks)
        if config.model_path is not None and fresh:
            load_weights(self.model, _start(config.model_path, beside), kind=config.model_type)
        set_training_mode(self.model, freeze_batch_norm=config.freeze_bn_stats)
        require_shareable(config, self.model, self._draws, self.ranks)
        require_composable(config, self.model, self._draws.moved, self.ranks)
        self._moving = moving(self.model)
        self.average = WeightAverage(self.model, config.swa_tau)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config, self.params)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.half_prec == "fp16")
        rule = magnitude_only if config.only_sam_step_size else None
        self._summed = SummedGradients(self.params, self.share, self.ranks, rule)
        climbs_together = self.ranks.several and self.share.is_of_group
        self.sam = SAM(
            self.model,
            rho=0.0,
            m=self.share.m,
            ascent=_ascent(config),
            steps=config.sam_iters,
            step_size=config.sam_step_size_mult,
            l2=config.l2_reg,
            combine=self._summed.combine,
            bn_stats=config.bn_stats,
            process_group=dist.group.WORLD if climbs_together else None,
            engine="loop" if climbs_together else config.engine,
            capture="off" if climbs_together else _capture(config),
        )
        self.objective = Objective(config, self.model, self.criterion, keyed=self._draws.keyed)
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
        batch = self._next_batch()
        own = self._own(batch)
        self.last_learning_rate, self.last_rho = self.learning_rate, self.rho
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_learning_rate
        self.sam.rho = self.last_rho
        climb_on_previous = config.sam_use_prev_batch and self.previous is not None and self.sam.rho > 0
        if config.has_own_model or config.has_own_loss:
            seed_all(self._seed("dropout"))
        keys = self._keys()
        self.optimizer.zero_grad()
        with self._weight_noise(), composed(self._moving, self.ranks):
            value, aux = self.sam.backward(
                self.objective,
                *own,
                *keys,
                scale=self.scaler,
                ascent_batch=(*self._own(self.previous), *keys)
                if climb_on_previous and self.previous is not None
                else None,
            )
        self._summed.add_up()
        self.scaler.unscale_(self.optimizer)
        self._add_gradient_noise()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model)
        self.previous = batch if config.sam_use_prev_batch else None
        wrong = aux["error"].sum() if "error" in aux else value.new_zeros(())
        sums = torch.stack([value * self.share.size, aux["loss"].sum(), wrong])
        (sums,) = self.ranks.summed([sums.to(self.sums)])
        self.sums += sums
        self.seen += config.batch_size
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
        """This process's part of the next batch; all of it where the step after it climbs on it."""
        config = self.config
        part = slice(0, config.batch_size) if config.sam_use_prev_batch else self.share.rows
        start = self.iteration * config.batch_size
        rows = self._epoch_order()[start + part.start : start + part.stop]
        # index_select copies whole images, several times as fast as indexing on the CPU.
        inputs, *mask = (argument.index_select(0, rows) for argument in self.train.arguments)
        targets = self.train.targets.index_select(0, rows)
        if self._augmentation is not None:
            generator = self._generator("augmentation")
            inputs = self._augmentation.part(inputs, generator, rows=part, of=config.batch_size)
        return (as_given(config, inputs), *mask, as_given(config, self._redrawn(targets, part)))

    def _own(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(batch[-1]) == self.share.size:
            return batch
        return tuple(argument[self.share.rows] for argument in batch)

    def _keys(self) -> list[Tensor]:
        """The keys of the examples, if something draws by them."""
        if not self._draws.keyed:
            return []
        rows = self.share.rows
        return [example_keys(self._seed("dropout"), torch.arange(rows.start, rows.stop, device=self.device))]

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

    def _redrawn(self, labels: Tensor, part: slice) -> Tensor:
        """The labels of a part of a batch, some drawn anew; draws are those of the whole batch."""
        if self.config.sgd_p_label_noise == 0:
            return labels
        probability = self.config.sgd_p_label_noise * self._label_noise(self._share)
        generator = self._generator("label noise")
        shape = (self.config.batch_size, *labels.shape[1:])
        chosen = torch.rand(shape, generator=generator, device=self.device) < probability
        drawn = torch.randint(self.data.num_classes, shape, generator=generator, device=self.device)
        return torch.where(chosen[part], drawn[part], labels)

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


def _require_type(config: TrainConfig, device: torch.device) -> None:
    if config.dtype == "float64" and device.type == "mps":
        raise InputError(f"dtype must be float32 on {device}, which has no float64, got {config.dtype}.")


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
