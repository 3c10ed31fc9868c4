"""What the page and its parts are called: what is true of what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lowland.deep import TrainConfig
from lowland.figures.paper import FIGURES
from lowland.report.gathered import FigureFiles, Gathered, OwnRun

PAPER = "Towards Understanding Sharpness-Aware Minimization"
_MANY = 3


def title(found: Gathered) -> str:
    """The page's.

    Example:
        >>> title(Gathered([], [], []))
        'Nothing to report'
    """
    names = {figure.about["name"] for figure in found.figures}
    parts = []
    if found.runs:
        parts.append(_of_runs(found.runs))
    elif found.sweeps:
        parts.append(_counted(len(found.sweeps), "sweep"))
    if names:
        parts.append(f"{_counted(len(names), 'figure')} of “{PAPER}”, run again")
    text = ", and ".join(parts) if parts else "nothing to report"
    return text[0].upper() + text[1:]


def _of_runs(runs: Sequence[OwnRun]) -> str:
    return f"{_counted(len(runs), 'run')} of {_what([run.config for run in runs])}"


def _what(configs: Sequence[TrainConfig]) -> str:
    models = _listed([config.model for config in configs], "models")
    return f"{models} on {_listed([config.data_name for config in configs], 'data sets')}"


def _listed(names: Sequence[str], what: str) -> str:
    once = list(dict.fromkeys(names))
    if len(once) > _MANY:
        return f"{len(once)} {what}"
    return " and ".join([", ".join(once[:-1])] * (len(once) > 1) + once[-1:])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _of_sweep(figure: FigureFiles) -> tuple[str, str]:
    configs = [TrainConfig.from_dict(run["config"]) for run in figure.about["runs"]]
    return figure.about["title"], _what(configs)


def named(figures: Sequence[FigureFiles]) -> list[tuple[str, str]]:
    """An id and a short title for each figure, with its scale and directory where it takes them to tell.

    Where there are several sweeps, each has its models and data in its title.
    """
    names = Counter(figure.about["name"] for figure in figures)
    kinds = Counter((figure.about["name"], figure.about["scale"]) for figure in figures)
    sweeps = Counter(_of_sweep(figure) for figure in figures if not figure.about["scale"])
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for figure in figures:
        name, scale = kind = figure.about["name"], figure.about["scale"]
        seen[kind] += 1
        again = "" if seen[kind] == 1 else f"-{seen[kind]}"
        told = [scale] * (names[name] > 1 and scale != "") + [str(figure.path)] * (kinds[kind] > 1)
        if scale == "" and sweeps.total() > 1:
            what = _of_sweep(figure)
            told = [what[1], *(told or [name] * (sweeps[what] > 1))]
        short = FIGURES[name].short if scale and name in FIGURES else figure.about["title"]
        identity = "-".join([name, scale] if scale else [name]) + again
        found.append((identity, f"{short} ({', '.join(told)})" if told else short))
    return found
