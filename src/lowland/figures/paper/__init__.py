"""The paper's figures: what each needs, how it is drawn, and what it claims."""

from lowland.figures.paper import (
    convergence,
    fig1,
    fig6,
    fig9,
    fig9_interpolation,
    fig12,
    m_sweep,
    multi_step,
    normalization,
    relu,
    sharpness_correlation,
    suboptimality,
    switching,
    theorem2,
    theory,
)
from lowland.figures.paper.diagonal_notebook import FIGURES as _NOTEBOOK
from lowland.figures.paper.figure import SCALES, Claim, PaperFigure, Rows, Scale, Verdict

FIGURES: dict[str, PaperFigure] = {
    figure.name: figure
    for figure in (
        fig1.FIGURE,
        m_sweep.FIGURE,
        multi_step.FIGURE,
        suboptimality.FIGURE,
        fig6.FIGURE,
        *_NOTEBOOK,
        theory.FIGURE,
        theorem2.FIGURE,
        relu.FIGURE,
        convergence.FIGURE,
        normalization.FIGURE,
        switching.FIGURE,
        fig9.FIGURE,
        fig9_interpolation.FIGURE,
        fig12.FIGURE,
        sharpness_correlation.FIGURE,
    )
}
"""By name, in the order of the paper's argument."""

__all__ = ["FIGURES", "SCALES", "Claim", "PaperFigure", "Rows", "Scale", "Verdict"]
