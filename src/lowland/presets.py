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
from lowland.sam.options import ButAscent, ButCombine, ButM, ButPerturb, ButRho, ButSource, ButSteps
from lowland.sam.schedule import ProportionalToLR, Schedule
from lowland.sam.shell import SAM
from lowland.sam.source import FromLoader, PreviousBatch

Rho = float | Schedule


def sam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButRho]) -> SAM:
    r"""SAM, :math:`e = \rho\, g / \|g\|_2` (Foret et al., 2021, eq. 2)."""
    return SAM(params, rho=rho, **options)


def m_sam(params: Params, *, rho: Rho = 0.05, m: int = 1, **options: Unpack[ButM]) -> SAM:
    """m-SAM: every m examples have their own perturbation (Andriushchenko & Flammarion, 2022, eq. 4)."""
    return SAM(params, rho=rho, m=m, **options)


def n_sam(
    params: Params,
    *,
    loader: Iterable[Any],
    num_batches: int | None = None,
    rho: Rho = 0.05,
    **options: Unpack[ButSource],
) -> SAM:
    """n-SAM: :math:`g` of the training set or some batches (Andriushchenko & Flammarion, 2022, eq. 3)."""
    return SAM(params, rho=rho, source=FromLoader(loader, num_batches), **options)


def max_sum(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButSource]) -> SAM:
    """MaxSum: :math:`g` of the previous batch (Andriushchenko & Flammarion, 2022)."""
    return SAM(params, rho=rho, source=PreviousBatch(), **options)


def usam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButAscent]) -> SAM:
    r"""USAM, :math:`e = \rho g` (Andriushchenko & Flammarion, 2022, eq. 5)."""
    return SAM(params, rho=rho, ascent=Unnormalized(), **options)


def multi_step(
    params: Params, *, rho: Rho = 0.05, steps: int = 10, step_size: float = 0.25, **options: Unpack[ButSteps]
) -> SAM:
    """Several projected ascent steps, of ``step_size * rho`` each (Foret et al., 2021, appendix C)."""
    return SAM(params, rho=rho, steps=steps, step_size=step_size, **options)


def asam(
    params: Params, *, rho: Rho = 0.5, eta: float = 0.01, by: Unit = "element", **options: Unpack[ButAscent]
) -> SAM:
    r"""ASAM, :math:`e = \rho\, T^2 g / \|T g\|_2`, :math:`T = |w| + \eta` (Kwon et al., 2021, eq. 8)."""
    return SAM(params, rho=rho, ascent=Adaptive(eta=eta, by=by), **options)


def sam_on(module: nn.Module, *, rho: Rho = 0.05, **options: Unpack[ButPerturb]) -> SAM:
    """SAM-ON: only the normalization layers are perturbed (Müller et al., 2023)."""
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
    r"""Random perturbation, :math:`e = \rho\, z / \sqrt p` (Andriushchenko & Flammarion, 2022, figure 1)."""
    return SAM(params, rho=rho, ascent=Random(distribution, scaling), **options)


def unified_sam(params: Params, *, rho: Rho = 0.05, lam: float = 0.5, **options: Unpack[ButAscent]) -> SAM:
    r"""Unified SAM, :math:`e = \rho (1 - \lambda + \lambda / \|g\|_2)\, g` (Oikonomou & Loizou, 2025)."""
    return SAM(params, rho=rho, ascent=Unified(lam), **options)


def friendly_sam(
    params: Params, *, rho: Rho = 0.05, sigma: float = 1.0, lam: float = 0.9, **options: Unpack[ButAscent]
) -> SAM:
    r"""Friendly SAM: climbs along :math:`g - \sigma \mu`, μ a running mean of g (Li et al., 2024)."""
    return SAM(params, rho=rho, ascent=Friendly(sigma, lam), **options)


def momentum_sam(
    params: Params, *, optimizer: torch.optim.Optimizer, rho: Rho = 0.3, **options: Unpack[ButAscent]
) -> SAM:
    r"""MSAM, :math:`e = -\rho\, v / \|v\|_2` along the momentum; one pass a step (Becker et al., 2024)."""
    return SAM(params, rho=rho, ascent=AlongMomentum(optimizer), **options)


def esam(params: Params, *, rho: Rho = 0.05, beta: float = 0.5, **options: Unpack[ButAscent]) -> SAM:
    r"""ESAM's random subset of weights, :math:`e = \rho\, b \odot g / (\beta \|g\|_2)` (Du et al., 2022)."""
    return SAM(params, rho=rho, ascent=RandomSubset(beta), **options)


def bsam(params: Params, *, optimizer: BSAM, rho: Rho = 0.01, **options: Unpack[ButAscent]) -> SAM:
    r"""Bayesian SAM, :math:`e = \rho\, g(\theta) / s`, for the optimizer BSAM (Möllenhoff & Khan, 2023)."""
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
    r"""GSAM, :math:`\nabla L(w+e) - \alpha g_\perp`, ρ follows the learning rate (Zhuang et al., 2022)."""
    rho = ProportionalToLR(optimizer, max_rho, max_lr, min_rho, min_lr)
    return SAM(params, rho=rho, combine=SurrogateGap(alpha), **options)


def wsam(params: Params, *, rho: Rho = 0.05, gamma: float = 0.9, **options: Unpack[ButCombine]) -> SAM:
    r"""WSAM, coupled: :math:`g + \frac{\gamma}{1-\gamma} (\nabla L(w+e) - g)` (Yue et al., 2023)."""
    return SAM(params, rho=rho, combine=Weighted(gamma), **options)


def wsam_decoupled(
    params: Params,
    *,
    optimizer: torch.optim.Optimizer,
    rho: Rho = 0.05,
    gamma: float = 0.9,
    **options: Unpack[ButCombine],
) -> SAM:
    """WSAM, decoupled: the optimizer is given g, its step the sharpness (Yue et al., 2023, alg. 1)."""
    return SAM(params, rho=rho, combine=DecoupledWeighted(gamma, optimizer), **options)


def look_sam(
    params: Params, *, rho: Rho = 0.05, k: int = 5, alpha: float = 0.7, **options: Unpack[ButCombine]
) -> SAM:
    r"""LookSAM: climbs every k-th step, else :math:`g + \alpha \|g\| g_v / \|g_v\|` (Liu et al., 2022)."""
    return SAM(params, rho=rho, combine=Look(k, alpha), **options)


def stable_sam(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButCombine]) -> SAM:
    r"""SSAM: :math:`\nabla L(w+e)` at the length of :math:`g` (Tan et al., 2025)."""
    return SAM(params, rho=rho, combine=stable, **options)


def step_size_only(params: Params, *, rho: Rho = 0.05, **options: Unpack[ButCombine]) -> SAM:
    r""":math:`g` at the length of :math:`\nabla L(w+e)` (``only_sam_step_size`` of the original's code)."""
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
