"""Every figure: its runs are valid at every scale, and it draws the numbers that it is given."""

import dataclasses
import math

import numpy as np
import pytest

from lowland.deep import TrainConfig
from lowland.figures.caption import caption, not_default
from lowland.figures.paper import (
    FIGURES,
    SCALES,
    convergence,
    fig1,
    fig9,
    fig9_interpolation,
    fig12,
    m_sweep,
    multi_step,
    normalization,
    suboptimality,
    switching,
)
from lowland.figures.paper import networks as networks_module
from lowland.figures.paper.networks import method, network, network_label, networks
from lowland.figures.paper.published import CIFAR10, CIFAR100, FIGURE1, SWITCHING
from lowland.figures.paper.trained import curve_rows, final_rows
from lowland.runs import Run
from lowland.sweeps import Measured, Store, Training, in_levels
from lowland.sweeps.cost import weights_of

SEEDS = (0, 1, 2)


def labels(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def row(method, rho, seed, error, **more):
    about = {"network": "here", "method": method, "rho": rho, "m": 128, "seed": seed, "published": False}
    return about | {"test_error": error, "validation_error": error} | more


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FIGURES)
def test_runs_are_valid_named_once_and_have_three_seeds(name, scale) -> None:
    tasks = FIGURES[name].runs(scale)
    assert tasks
    assert len({task.name for task in tasks}) == len(tasks)
    trained = [task for level in in_levels(tasks) for task in level if isinstance(task, Training)]
    seeds: dict[TrainConfig, set[int]] = {}
    for task in trained:
        assert task.config.engine == "auto"
        seeds.setdefault(dataclasses.replace(task.config, seed=0), set()).add(task.config.seed)
    assert all(len(found) >= 3 for found in seeds.values())


def test_the_papers_settings_are_the_papers() -> None:
    first, second = networks("paper")
    stated = {"lr_max": 0.1, "lr_schedule": "piecewise", "l2_reg": 5e-4, "batch_size": 128, "model_width": 64}
    for config, data, model in ((first, "cifar10", "resnet18"), (second, "cifar100", "resnet34")):
        assert (config.dataset, config.model, config.epochs) == (data, model, 200)
        assert {key: getattr(config, key) for key in stated} == stated
    assert [network_label(config) for config in (first, second)] == [CIFAR10, CIFAR100]
    assert {task.config.epochs for task in FIGURES["convergence"].runs("paper")} == {1000}
    noisy = {task.config.p_label_noise for task in FIGURES["fig12"].runs("paper")}
    assert noisy == {0.6}
    assert {task.config.dataset for task in FIGURES["fig12"].runs("paper")} == {"cifar10", "cifar100"}


def test_published_curves_end_in_each_other() -> None:
    for name, ends in SWITCHING.items():
        assert ends["SAM → ERM"][0] == ends["ERM → SAM"][-1], name
        assert ends["SAM → ERM"][-1] == ends["ERM → SAM"][0], name
        assert len(ends["SAM → ERM"]) == len(ends["ERM → SAM"]) == 11
    assert min(FIGURE1[CIFAR10]["128-SAM"].values()) == FIGURE1[CIFAR10]["128-SAM"][0.2] == 4.30


def test_figures_share_runs() -> None:
    runs = {
        name: {t.name for t in FIGURES[name].runs("quick")} for name in ("fig1", "m-sweep", "convergence")
    }
    assert runs["convergence"] <= runs["fig1"]
    assert len(runs["fig1"] & runs["m-sweep"]) == 5 * (1 + len(fig1.RADII["quick"]))
    every = in_levels([task for figure in FIGURES.values() for task in figure.runs("quick")])
    assert sum(len(level) for level in every) < sum(
        len([t for level in in_levels(figure.runs("quick")) for t in level]) for figure in FIGURES.values()
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "ERM"),
        ({"sam_rho": 0.1}, "128-SAM"),
        ({"sam_rho": 0.1, "m": 4}, "4-SAM"),
        ({"sam_rho": 0.1, "sam_no_grad_norm": True}, "128-USAM"),
        ({"sam_rho": 0.1, "sam_use_prev_batch": True}, "n-SAM"),
        ({"add_weight_perturb_scale": 0.01}, "random"),
        ({"sam_rho": 0.1, "sam_iters": 10, "sam_step_size_mult": 0.2}, "128-SAM, 10 steps"),
    ],
)
def test_methods_are_named_from_configs(options, name) -> None:
    assert method(network("quick", **options)) == name


def test_figure_1_draws_means_bands_and_the_published_panel() -> None:
    rows = [row("ERM", 0.0, s, e) for s, e in enumerate((5.0, 5.2, 5.4))]
    rows += [row("128-SAM", 0.1, s, e) for s, e in enumerate((4.0, 4.4, 4.8))]
    rows += [row("128-SAM", 0.2, s, e) for s, e in enumerate((4.1, 4.2, 4.3))]
    rows += [{"network": CIFAR10, "method": "128-SAM", "rho": 0.1, "test_error": 4.4, "published": True}]
    figure = FIGURES["fig1"].plot(rows)
    ours, published = figure.axes
    assert (ours.get_title(), published.get_title()) == ("here", f"published: {CIFAR10}")
    line = labels(ours)["128-SAM"]
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [4.4, 4.2])
    np.testing.assert_allclose(labels(ours)["ERM"].get_ydata(), [5.2, 5.2])
    band = ours.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(4.4 - 0.4)
    assert band[:, 1].max() == pytest.approx(4.4 + 0.4)
    np.testing.assert_allclose(labels(published)["128-SAM, published"].get_ydata(), [4.4])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "ERM",
        "128-SAM",
        "128-SAM, published",
    }


def test_one_radius_alone_has_its_spread_as_a_bar() -> None:
    rows = [row("128-SAM", 0.1, s, e) for s, e in enumerate((4.0, 4.4, 4.8))]
    (ax,) = FIGURES["fig1"].plot(rows).axes
    (bar,) = ax.containers
    (segment,) = bar.lines[2][0].get_segments()
    np.testing.assert_allclose(segment, [[0.1, 4.0], [0.1, 4.8]])


@pytest.mark.parametrize(
    ("errors", "limits"), [((4.0, 5.0, 5.5), (3.6, 6.5)), ((4.0, 5.0, 90.0), (3.6, 8.0))]
)
def test_the_best_errors_fill_the_picture_and_the_worst_leave_it(errors, limits) -> None:
    (ax,) = FIGURES["fig1"].plot([row("128-SAM", 0.1, s, e) for s, e in enumerate(errors)]).axes
    np.testing.assert_allclose(ax.get_ylim(), limits)


def test_published_values_are_in_the_same_panel_where_the_setting_is_the_papers() -> None:
    rows = [row("128-SAM", 0.1, s, e, network=CIFAR10) for s, e in enumerate((4.0, 4.4, 4.8))]
    rows += [{"network": CIFAR10, "method": "128-SAM", "rho": 0.1, "test_error": 4.3, "published": True}]
    (ax,) = FIGURES["fig1"].plot(rows).axes
    assert set(labels(ax)) >= {"128-SAM", "128-SAM, published"}


def test_a_random_perturbations_radius_is_its_deviation_times_the_root_of_the_weights() -> None:
    task = Training(network("quick", add_weight_perturb_scale=0.01))
    assert fig1._radius(task) == {"rho": pytest.approx(0.01 * math.sqrt(weights_of(task.config)))}
    assert fig1._radius(Training(network("quick"))) == {}


def test_the_m_sweep_draws_every_m_at_the_radius_of_validation() -> None:
    rows = [row("ERM", 0.0, s, 5.0) for s in SEEDS]
    for m, rho, test, validation in ((128, 0.1, 4.5, 4.0), (128, 0.2, 4.0, 6.0), (4, 0.05, 4.2, 4.1)):
        rows += [row(f"{m}-SAM", rho, s, test + 0.1 * s, m=m, validation_error=validation) for s in SEEDS]
    left, right = FIGURES["m-sweep"].plot(rows).axes
    np.testing.assert_allclose(labels(left)["128-SAM"].get_ydata(), [4.6, 4.1])
    best = labels(right)["m-SAM, radius by validation"]
    np.testing.assert_allclose(best.get_xdata(), [4, 128])
    np.testing.assert_allclose(best.get_ydata(), [4.3, 4.6])
    verdicts = {claim.statement: claim.verdict for claim in m_sweep.claims(rows)}
    assert verdicts == {
        "128-SAM generalizes better than ERM": "agrees",
        "4-SAM generalizes better than 128-SAM": "agrees",
    }


def test_ten_steps_are_compared_with_one_and_with_small_m() -> None:
    rows = [row("ERM", 0.0, s, 6.0 + 0.1 * s) for s in SEEDS]
    for name, error in (("128-SAM", 5.0), ("128-SAM, 10 steps", 5.02), ("4-SAM", 4.5)):
        rows += [row(name, 0.1, s, error + 0.1 * s + 0.01 * s * s) for s in SEEDS]
    first, second = multi_step.claims(rows)
    assert (first.verdict, second.verdict) == ("agrees", "agrees")
    (ax, *_) = FIGURES["multi-step"].plot(rows).axes
    np.testing.assert_allclose(labels(ax)["128-SAM, 10 steps"].get_ydata(), [5.02 + 0.1 + 0.05 / 3])


def test_switching_has_erm_and_sam_at_both_ends(tmp_path, monkeypatch) -> None:
    finals = [row("ERM", 0.0, 0, 5.0, kind="", at=0.0), row("128-SAM", 0.2, 0, 4.0, kind="", at=0.0)]
    finals += [
        row("128-SAM", 0.2, 0, 4.5, kind="SAM → ERM", at=50.0),
        row("128-SAM", 0.2, 0, 4.2, kind="ERM → SAM", at=50.0),
    ]
    monkeypatch.setattr(switching, "final_rows", lambda *_, **__: finals)
    rows = switching.data([], Store(tmp_path))
    ours = {(r["kind"], r["at"]): r["test_error"] for r in rows if not r["published"]}
    assert ours == {
        ("SAM → ERM", 0.0): 5.0,
        ("SAM → ERM", 50.0): 4.5,
        ("SAM → ERM", 100.0): 4.0,
        ("ERM → SAM", 0.0): 4.0,
        ("ERM → SAM", 50.0): 4.2,
        ("ERM → SAM", 100.0): 5.0,
    }
    ax = FIGURES["switching"].plot(rows).axes[0]
    np.testing.assert_allclose(labels(ax)["SAM → ERM"].get_ydata(), [5.0, 4.5, 4.0])


def test_suboptimality_is_drawn_over_m() -> None:
    rows = []
    for name, growth in (("ERM", 2.0), ("SAM", 1.2)):
        for i, m in enumerate((4, 16, 64)):
            rows += [
                {"network": "here", "method": name, "m": m, "rho": 0.1, "seed": s, "published": False}
                | {"factor": growth**i + 0.01 * s * (i + 1)}
                for s in SEEDS
            ]
    ax = FIGURES["suboptimality"].plot(rows).axes[0]
    np.testing.assert_allclose(labels(ax)["trained by ERM"].get_ydata(), [1.01, 2.02, 4.03])
    assert [claim.verdict for claim in suboptimality.claims(rows)] == ["agrees", "agrees"]


def test_label_noise_compares_the_end_and_the_best_epoch_of_each_seed() -> None:
    rows = []
    for name, rho, curve in (("ERM", 0.0, (30.0, 20.0, 50.0)), ("128-SAM", 0.2, (30.0, 12.0, 40.0))):
        for s in SEEDS:
            rows += [
                row(
                    name,
                    rho,
                    s,
                    e + 0.1 * s + 0.01 * s * s * (rho > 0),
                    epoch=i,
                    train_error_noisy=90.0 - 10 * i,
                )
                for i, e in enumerate(curve)
            ]
    end, best = fig12.claims(rows)
    assert end.ours.startswith("128-SAM, ρ = 0.2 40.12 ± 0.")
    assert best.ours.startswith("128-SAM, ρ = 0.2 12.12 ± 0.")
    assert (end.verdict, best.verdict) == ("agrees", "agrees")
    test, noisy = FIGURES["fig12"].plot(rows).axes
    np.testing.assert_allclose(labels(test)["ERM"].get_ydata(), [30.1, 20.1, 50.1])
    np.testing.assert_allclose(labels(noisy)["128-SAM, ρ = 0.2"].get_ydata(), [90.0, 80.0, 70.0])


def test_the_correlation_is_kendalls_over_networks() -> None:
    points = [(1.0, 5.0), (0.5, 4.0), (0.2, 4.5), (0.1, 3.0)]
    rows = [
        {"network": "here", "method": f"x{i}", "seed": i, "m": m, "rho": 0.1, "sharpness": s, "test_error": e}
        | {"published": False}
        for m in (1, 16)
        for i, (s, e) in enumerate(points)
    ]
    figure = FIGURES["sharpness-correlation"].plot(rows)
    # Five of the six pairs are in the same order in both, one is not.
    assert [ax.get_title() for ax in figure.axes] == ["m = 1: Kendall's τ +0.67", "m = 16: Kendall's τ +0.67"]
    drawn = sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].get_lines())
    assert drawn == sorted(points)


def test_sharpness_is_asked_of_every_network_of_two_figures() -> None:
    tasks = FIGURES["sharpness-correlation"].runs("quick")
    networks_ = {t.name for name in ("fig1", "m-sweep") for t in FIGURES[name].runs("quick")}
    assert all(isinstance(task, Measured) for task in tasks)
    assert {task.of.name for task in tasks} == networks_


def test_fine_tuning_starts_from_its_own_seed_and_ends_in_four_ways() -> None:
    for task in FIGURES["fig9"].runs("quick"):
        if task.start is not None:
            assert task.start.config.seed == task.config.seed
            assert task.config.lr_schedule == "constant"
    assert len(FIGURES["fig9"].runs("quick")) == 5 * 6


def test_a_caption_says_what_is_common_and_what_varies() -> None:
    base = network("quick")
    text = caption(
        [Training(dataclasses.replace(base, sam_rho=r, seed=s)) for r in (0.0, 0.1) for s in (0, 1)]
    )
    assert text.startswith("4 training runs; dataset mnist, frac_train 0.074, no_data_augm True, model fc")
    assert "; varied: sam_rho in 0, 0.1; seeds 0, 1." in text
    assert "droprate" not in text
    assert not_default(base.to_dict())["epochs"] == 40
    assert "droprate" not in not_default(base.to_dict())


def test_every_scale_has_its_settings() -> None:
    assert set(networks_module._SETTINGS) == set(SCALES)


def test_convergence_draws_means_over_seeds_and_judges_the_last_epoch() -> None:
    rows = [
        row(name, rho, s, error + 0.1 * s + 0.01 * s * s * rho, epoch=e, train_loss=10.0**-e, train_error=0.0)
        for name, rho, errors in (("ERM", 0.0, (9.0, 5.0)), ("128-SAM", 0.2, (9.0, 4.0)))
        for s in SEEDS
        for e, error in enumerate(errors, start=1)
    ]
    loss, _, test = FIGURES["convergence"].plot(rows).axes
    np.testing.assert_allclose(labels(loss)["ERM"].get_ydata(), [0.1, 0.01])
    np.testing.assert_allclose(labels(test)["ERM"].get_ydata(), [9.1, 5.1])
    assert [claim.verdict for claim in convergence.claims(rows)] == ["agrees", "agrees"]
    for one in rows:
        one["train_error"] = 1.0
    assert [claim.verdict for claim in convergence.claims(rows)] == ["disagrees", "agrees"]


def test_normalization_has_a_panel_per_noise_and_compares_the_last_epoch() -> None:
    rows = []
    for noise, errors in ((0.0, (5.0, 4.0, 4.1)), (0.6, (50.0, 40.0, 12.0))):
        for name, rho, error in zip(("ERM", "128-SAM", "128-USAM"), (0.0, 0.2, 0.4), errors, strict=True):
            rows += [
                row(
                    name,
                    rho,
                    s,
                    error * (2 - e) + 0.1 * s + 0.01 * s * s * rho,
                    noise=noise,
                    epoch=float(e + 1),
                )
                for s in SEEDS
                for e in (0, 1)
            ]
    clean, noisy = FIGURES["normalization"].plot(rows).axes
    assert (clean.get_title(), noisy.get_title()) == ("clean labels", "60 % wrong labels")
    np.testing.assert_allclose(labels(noisy)["128-USAM, ρ = 0.4"].get_ydata(), [24.1, 12.1], atol=0.02)
    only_noisy = [one for one in rows if one["noise"] == 0.6 or one["method"] != "128-SAM"]
    clean, noisy = FIGURES["normalization"].plot(only_noisy).axes
    name = "128-USAM, ρ = 0.4"
    assert (
        labels(clean)[name].get_color()
        == labels(noisy)[name].get_color()
        != labels(noisy)["128-SAM, ρ = 0.2"].get_color()
    )
    first, second = normalization.claims(rows)
    assert (first.verdict, second.verdict) == ("agrees", "agrees")
    assert first.ours.startswith("128-USAM (ρ = 0.4) 4.21 ")
    assert second.ours.startswith("128-USAM (ρ = 0.4) 12.1")


def test_fine_tuning_is_drawn_through_the_switch() -> None:
    rows = []
    for kind, offset, error in (("ERM", 0, 5.0), ("SAM", 0, 4.0), *((k, 10, 4.5) for k in fig9._KINDS)):
        rows += [
            row(
                "x",
                0.0,
                s,
                error - 0.01 * e + 0.001 * s * (offset + e),
                kind=kind,
                offset=offset,
                epoch=offset + e,
            )
            for s in SEEDS
            for e in ((8, 9, 10) if offset == 0 else (0, 1, 2))
        ]
    (ax,) = FIGURES["fig9"].plot(rows).axes
    np.testing.assert_allclose(labels(ax)["ERM → SAM"].get_xdata(), [10, 11, 12])
    np.testing.assert_allclose(labels(ax)["ERM, before"].get_ydata(), [4.928, 4.919, 4.91], atol=1e-9)
    assert [claim.verdict for claim in fig9.claims(rows)] == ["cannot be told", "cannot be told"]
    for one in rows:
        if one["kind"] in {"ERM → SAM", "SAM → ERM"}:
            one["test_error"] -= 1.0 + 0.001 * one["seed"]
    assert [claim.verdict for claim in fig9.claims(rows)] == ["agrees", "agrees"]


def test_the_line_between_minima_is_judged_by_its_barrier() -> None:
    def rows(height):
        return [
            {
                "seed": s,
                "published": False,
                "t": t,
                "train_loss": 0.01 + height * (t == 0.5),
                "test_loss": 0.2,
            }
            | {"train_error": 0.0, "test_error": 5.0 + s}
            for s in SEEDS
            for t in (-1.0, 0.0, 0.5, 1.0, 2.0)
        ]

    for height, verdict in ((0.01, "agrees"), (0.05, "disagrees")):
        (claim,) = fig9_interpolation.claims(rows(height))
        assert claim.verdict == verdict
        assert f"{height:.2g}" in claim.ours
    loss, error = FIGURES["fig9-interpolation"].plot(rows(0.01)).axes
    np.testing.assert_allclose(labels(loss)["train"].get_ydata(), [0.01, 0.01, 0.02, 0.01, 0.01])
    np.testing.assert_allclose(labels(error)["test"].get_ydata(), [6.0] * 5)


def test_curves_have_whole_evaluations_only_and_per_cent(tmp_path) -> None:
    store, task = Store(tmp_path), Training(network("quick", sam_rho=0.1, seed=2))
    run = Run.create(store.run(task).path, task.describe(), {})
    for epoch, full, error in ((0, False, 0.9), (5, True, 0.25), (6, False, 0.1), (10, True, 0.2)):
        row = {"epoch": epoch, "full": full, "test_error": error, "train_error": 0.0, "validation_error": 0.0}
        run.append({**row, "train_loss": None if epoch == 10 else 1.0})
    assert curve_rows([task], store) == []
    run.finish({})
    rows = curve_rows([task], store)
    assert [(row["epoch"], row.get("test_error")) for row in rows] == [(5, 25.0), (10, 20.0)]
    assert math.isnan(rows[1]["train_loss"])
    (last,) = final_rows([task], store, more=lambda task: {"kind": task.config.model})
    assert (last["method"], last["rho"], last["seed"], last["kind"]) == ("128-SAM", 0.1, 2, "fc")
