r"""The published variants, each a line or two: what :class:`~lowland.SAM` is given for it.

Every preset takes what ``SAM`` takes, and its own arguments. To make another variant, write another function.
In the formulas :math:`g = \nabla L_S(w)` is a group's gradient and :math:`e` its perturbation; unless said
otherwise the optimizer is given :math:`\nabla L_S(w + e)`, averaged over the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Unpack

import torch
from torch import nn

from lowland.sam.ascent import (
    Adaptive,
    AlongMomentum,
    Friendly,
    Preconditioned,
    Random,
    RandomSubset,
    Unified,
    Unnormalized,
)
from lowland.sam.ascent.adaptive import Unit
from lowland.sam.ascent.blind import Distribution, Scaling
from lowland.sam.bayesian import BSAM, BayesianAscent
from lowland.sam.choose import Params, norm_layers
from lowland.sam.combine import DecoupledWeighted, Look, SurrogateGap, Weighted, magnitude_only, stable
from lowland.sam.finish import Finish
from lowland.sam.functional import Functional
from lowland.sam.objective import Loss
from lowland.sam.options import ButAscent, ButCombine, ButM, ButPerturb, ButRho, ButSource, ButSteps
from lowland.sam.part import Call, brief
from lowland.sam.schedule import ProportionalToLR, Schedule
from lowland.sam.shell import SAM, AscentBatch
from lowland.sam.source import FromLoader, PreviousBatch
from lowland.sam.total import SAMGradient

Rho = float | Schedule


def sam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButRho]) -> SAM:
    r"""SAM, :math:`e = \rho\, g / \|g\|_2` (Foret et al., 2021, eq. 2).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> sam = presets.sam(w, rho=1.0)
        >>> value = sam.backward(lambda: sum(t.square().sum() for t in w) / 2)  # the gradient is w, of norm 5
        >>> [round(t.grad.item(), 4) for t in w]
        [3.6, 4.8]
    """
    return SAM(params, rho=rho, **options)


def m_sam(params: Params, *, rho: Rho = 0.05, m: int = 1, **options: Unpack[ButM]) -> SAM:
    r"""m-SAM: every m examples have their own perturbation (Andriushchenko & Flammarion, 2022, eq. 4).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        m: Examples that share one perturbation.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.m_sam(torch.nn.Linear(3, 2), m=4)
        SAM(2 parameters, rho=0.05, m=4)
    """
    return SAM(params, rho=rho, m=m, **options)


def n_sam(
    params: Params,
    *,
    loader: Iterable[Any],
    num_batches: int | None = None,
    rho: Rho = 0.05,
    **options: Unpack[ButSource],
) -> SAM:
    r"""n-SAM: :math:`g` of the training set or some batches (Andriushchenko & Flammarion, 2022, eq. 3).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        loader: Batches of the training set, each the tuple or list of the loss's arguments.
        num_batches: How many of them a climb sees; ``None`` for all.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.n_sam(torch.nn.Linear(3, 2), loader=[(torch.ones(8, 3),)])
        SAM(2 parameters, rho=0.05, source=FromLoader(loader=list, num_batches=None))
    """
    return SAM(params, rho=rho, source=FromLoader(loader, num_batches), **options)


def max_sum(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButSource]) -> SAM:
    r"""MaxSum: :math:`g` of the previous batch (Andriushchenko & Flammarion, 2022).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.max_sum(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, source=PreviousBatch())
    """
    return SAM(params, rho=rho, source=PreviousBatch(), **options)


def usam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButAscent]) -> SAM:
    r"""USAM, :math:`e = \rho g` (Andriushchenko & Flammarion, 2022, eq. 4).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: What the gradient is multiplied with, :math:`\rho`, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.usam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, ascent=Unnormalized())
    """
    return SAM(params, rho=rho, ascent=Unnormalized(), **options)


def multi_step(
    params: Params, *, rho: Rho = 0.05, steps: int = 10, step_size: float = 0.25, **options: Unpack[ButSteps]
) -> SAM:
    r"""Several projected ascent steps, of ``step_size * rho`` each (Foret et al., 2021, appendix C).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        steps: Number of steps.
        step_size: Size of one in units of ``rho``.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.multi_step(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, steps=10, step_size=0.25)
    """
    return SAM(params, rho=rho, steps=steps, step_size=step_size, **options)


def asam(
    params: Params, *, rho: Rho = 0.5, eta: float = 0.01, by: Unit = "element", **options: Unpack[ButAscent]
) -> SAM:
    r"""ASAM, :math:`e = \rho\, T^2 g / \|T g\|_2`, :math:`T = |w| + \eta` (Kwon et al., 2021, eq. 8).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius of the ascent in the norm of :math:`e / T`, or a schedule.
        eta: :math:`\eta`, which lets weights at zero move.
        by: ``"element"``: :math:`T` is each weight's size; ``"filter"``: the norm of its filter.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.asam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.5, ascent=Adaptive(eta=0.01, by='element', scaled='*weight*'))
    """
    return SAM(params, rho=rho, ascent=Adaptive(eta=eta, by=by), **options)


def sam_on(module: nn.Module, *, rho: Rho = 0.05, **options: Unpack[ButPerturb]) -> SAM:
    r"""SAM-ON: only the normalization layers are perturbed (Müller et al., 2023).

    Args:
        module: The module, whose layers of normalization are found by :func:`~lowland.sam.norm_layers`.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Raises:
        ValueError: If the module has no such layer.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        >>> presets.sam_on(model)
        SAM(4 parameters, rho=0.05, perturb=['1.weight', '1.bias'])
    """
    layers = norm_layers(module)
    if not layers:
        raise ValueError("module must have normalization layers for sam_on, got none.")
    return SAM(module, rho=rho, perturb=layers, **options)


def random(
    params: Params,
    *,
    rho: Rho = 0.05,
    distribution: Distribution = "gaussian",
    scaling: Scaling = "additive",
    **options: Unpack[ButAscent],
) -> SAM:
    r"""Random perturbation, :math:`e = \rho\, z / \sqrt p` (Andriushchenko & Flammarion, 2022, figure 1).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Root of the mean squared l2 norm of the perturbation of all :math:`p` weights, or a schedule.
        distribution: Of :math:`z`, of mean 0 and variance 1: ``"gaussian"`` or ``"uniform"``.
        scaling: ``"additive"``, or ``"multiplicative"``: :math:`e` is multiplied with :math:`|w|`.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.random(torch.nn.Linear(3, 2), distribution="uniform")
        SAM(2 parameters, rho=0.05, ascent=Random(distribution='uniform', scaling='additive'))
    """
    return SAM(params, rho=rho, ascent=Random(distribution, scaling), **options)


def unified_sam(params: Params, *, rho: Rho = 0.05, lam: float = 0.5, **options: Unpack[ButAscent]) -> SAM:
    r"""Unified SAM, :math:`e = \rho (1 - \lambda + \lambda / \|g\|_2)\, g` (Oikonomou & Loizou, 2025).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        lam: :math:`\lambda`: 0 is USAM, 1 is SAM.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.unified_sam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, ascent=Unified(lam=0.5))
    """
    return SAM(params, rho=rho, ascent=Unified(lam), **options)


def friendly_sam(
    params: Params, *, rho: Rho = 0.05, sigma: float = 1.0, lam: float = 0.9, **options: Unpack[ButAscent]
) -> SAM:
    r"""Friendly SAM: climbs along :math:`g - \sigma \mu`, μ a running mean of g (Li et al., 2024).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        sigma: Weight :math:`\sigma` of the mean that is subtracted.
        lam: Decay of the mean.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.friendly_sam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, ascent=Friendly(sigma=1.0, lam=0.9, ascent=L2()))
    """
    return SAM(params, rho=rho, ascent=Friendly(sigma, lam), **options)


def momentum_sam(
    params: Params, *, optimizer: torch.optim.Optimizer, rho: Rho = 0.3, **options: Unpack[ButAscent]
) -> SAM:
    r"""MSAM, :math:`e = -\rho\, v / \|v\|_2` along the momentum; one pass a step (Becker et al., 2024).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        optimizer: The optimizer, whose state holds the momentum :math:`v`.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> presets.momentum_sam(model, optimizer=optimizer)
        SAM(2 parameters, rho=0.3, ascent=AlongMomentum)
    """
    return SAM(params, rho=rho, ascent=AlongMomentum(optimizer), **options)


def esam(params: Params, *, rho: Rho = 0.05, beta: float = 0.5, **options: Unpack[ButAscent]) -> SAM:
    r"""ESAM's random subset of weights, :math:`e = \rho\, b \odot g / (\beta \|g\|_2)` (Du et al., 2022).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius of the ascent whose part it is, in the l2 norm, or a schedule.
        beta: Share :math:`\beta` of the weights that move, drawn anew for every group by :math:`b`.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.esam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, ascent=RandomSubset(beta=0.5, ascent=L2()))
    """
    return SAM(params, rho=rho, ascent=RandomSubset(beta), **options)


def preconditioned_sam(
    params: Params,
    *,
    optimizer: torch.optim.Optimizer,
    rho: Rho = 0.05,
    eps: float = 1e-8,
    **options: Unpack[ButAscent],
) -> SAM:
    r"""SAM along Adam's direction, :math:`e = \rho\, P g / \|P g\|_2`, :math:`P = 1 / (\sqrt v + \epsilon)`.

    For language models (Singh et al., 2025; what of it is our reading says
    :class:`~lowland.sam.Preconditioned`).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        optimizer: Their optimizer, which keeps a second moment :math:`v`: Adam, AdamW, RMSprop.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        eps: :math:`\epsilon`, beside the root of the second moment.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> model = torch.nn.Linear(3, 2)
        >>> presets.preconditioned_sam(model, optimizer=torch.optim.AdamW(model.parameters()))
        SAM(2 parameters, rho=0.05, ascent=Preconditioned)
    """
    return SAM(params, rho=rho, ascent=Preconditioned(optimizer, eps), **options)


def functional_sam(params: Params, *, rho: Rho = 0.05, m: int | None = None, **options: Unpack[ButM]) -> SAM:
    r"""Functional SAM, :math:`J_F(w + e)^\top\, \partial \ell / \partial F(w)` (Singh et al., 2025).

    For language models. The loss is a :class:`~lowland.sam.Functional`, which says what is our reading; this
    is ``SAM`` that refuses any other, with which it would be plain SAM in silence. With
    :class:`~lowland.sam.Preconditioned` as its ``ascent`` it climbs along Adam's direction.

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        m: Examples that share one perturbation; ``None`` means the whole batch.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from lowland import presets
        >>> from lowland.sam import Functional
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> sam = presets.functional_sam(model, m=1)
        >>> sam
        SAM(4 parameters, rho=0.05, m=1)
        >>> loss = Functional(lambda x, y: model(x), lambda logits, x, y: F.cross_entropy(logits, y))
        >>> value = sam.backward(loss, torch.ones(2, 3), torch.tensor([0, 1]))
    """
    return _OfFunctional(params, rho=rho, m=m, **options)


class _OfFunctional(SAM):
    def _gradient(self, loss: Loss, call: Call, ascent_batch: AscentBatch) -> tuple[SAMGradient, Finish]:
        if not isinstance(loss, Functional):
            raise TypeError(
                "loss must be lowland.sam.Functional(outputs, criterion) with functional_sam, got "
                f"{brief(loss)}."
            )
        return super()._gradient(loss, call, ascent_batch)


def bsam(params: Params, *, optimizer: BSAM, rho: Rho = 0.01, **options: Unpack[ButAscent]) -> SAM:
    r"""Bayesian SAM, :math:`e = \rho\, g(\theta) / s`, for the optimizer BSAM (Möllenhoff & Khan, 2023).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        optimizer: The optimizer :class:`~lowland.sam.BSAM`, which learns :math:`s`.
        rho: What the gradient over :math:`s` is multiplied with, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> from lowland.sam import BSAM
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = BSAM(model.parameters(), lr=0.1, num_examples=100)
        >>> presets.bsam(model, optimizer=optimizer)
        SAM(2 parameters, rho=0.01, ascent=BayesianAscent(optimizer=BSAM))
    """
    return SAM(params, rho=rho, ascent=BayesianAscent(optimizer), **options)


def gsam(
    params: Params,
    *,
    optimizer: torch.optim.Optimizer,
    max_rho: float,
    max_lr: float,
    min_rho: float = 0.0,
    min_lr: float = 0.0,
    alpha: float = 0.4,
    **options: Unpack[ButCombine],
) -> SAM:
    r"""GSAM, :math:`\nabla L(w+e) - \alpha g_\perp`, ρ follows the learning rate (Zhuang et al., 2022).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        optimizer: The optimizer, whose learning rate the radius follows.
        max_rho: Radius at ``max_lr``.
        max_lr: The largest learning rate.
        min_rho: Radius at ``min_lr``.
        min_lr: The smallest learning rate.
        alpha: Weight :math:`\alpha` of the part of :math:`g` that is orthogonal to :math:`\nabla L(w+e)`.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> presets.gsam(model, optimizer=optimizer, max_rho=0.2, max_lr=0.1)
        SAM(2 parameters, rho=ProportionalToLR, combine=SurrogateGap(alpha=0.4))
    """
    rho = ProportionalToLR(optimizer, max_rho, max_lr, min_rho, min_lr)
    return SAM(params, rho=rho, combine=SurrogateGap(alpha), **options)


def wsam(params: Params, *, rho: Rho = 0.05, gamma: float = 0.9, **options: Unpack[ButCombine]) -> SAM:
    r"""WSAM, coupled: :math:`g + \frac{\gamma}{1-\gamma} (\nabla L(w+e) - g)` (Yue et al., 2023).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        gamma: :math:`\gamma`, at least 0 and below 1: 0 is ERM, 1/2 is SAM.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.wsam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, combine=Weighted(gamma=0.9))
    """
    return SAM(params, rho=rho, combine=Weighted(gamma), **options)


def wsam_decoupled(
    params: Params,
    *,
    optimizer: torch.optim.Optimizer,
    rho: Rho = 0.05,
    gamma: float = 0.9,
    **options: Unpack[ButCombine],
) -> SAM:
    r"""WSAM, decoupled: the optimizer is given g, its step the sharpness (Yue et al., 2023, alg. 1).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        optimizer: The optimizer; a hook on its steps is registered.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        gamma: :math:`\gamma`, at least 0 and below 1: 0 is ERM, 1/2 is SAM.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> presets.wsam_decoupled(model, optimizer=optimizer)
        SAM(2 parameters, rho=0.05, combine=DecoupledWeighted(gamma=0.9))
    """
    return SAM(params, rho=rho, combine=DecoupledWeighted(gamma, optimizer), **options)


def look_sam(
    params: Params, *, rho: Rho = 0.05, k: int = 5, alpha: float = 0.7, **options: Unpack[ButCombine]
) -> SAM:
    r"""LookSAM: climbs every k-th step, else :math:`g + \alpha \|g\| g_v / \|g_v\|` (Liu et al., 2022).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        k: A step in k climbs, the first one among them.
        alpha: Weight :math:`\alpha` of the direction :math:`g_v` that is kept from the last climb.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.look_sam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, combine=Look(k=5, alpha=0.7))
    """
    return SAM(params, rho=rho, combine=Look(k, alpha), **options)


def stable_sam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButCombine]) -> SAM:
    r"""SSAM: :math:`\nabla L(w+e)` at the length of :math:`g` (Tan et al., 2025).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.stable_sam(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, combine=stable)
    """
    return SAM(params, rho=rho, combine=stable, **options)


def step_size_only(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButCombine]) -> SAM:
    r""":math:`g` at the length of :math:`\nabla L(w+e)` (``only_sam_step_size`` of the original's code).

    Args:
        params: The parameters, as :class:`~lowland.SAM` takes them.
        rho: Radius :math:`\rho` of the ascent in the l2 norm, or a schedule.
        options: Other options of :class:`~lowland.SAM`.

    Returns:
        The ``SAM``.

    Example:
        >>> import torch
        >>> from lowland import presets
        >>> presets.step_size_only(torch.nn.Linear(3, 2))
        SAM(2 parameters, rho=0.05, combine=magnitude_only)
    """
    return SAM(params, rho=rho, combine=magnitude_only, **options)


PRESETS: dict[str, Callable[..., SAM]] = {
    preset.__name__: preset
    for preset in (
        sam,
        m_sam,
        n_sam,
        max_sum,
        usam,
        multi_step,
        asam,
        sam_on,
        random,
        unified_sam,
        friendly_sam,
        momentum_sam,
        preconditioned_sam,
        functional_sam,
        esam,
        bsam,
        gsam,
        wsam,
        wsam_decoupled,
        look_sam,
        stable_sam,
        step_size_only,
    )
}
"""All of them by name."""
