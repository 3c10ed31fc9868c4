"""``lowland figure`` and ``lowland report``."""

import json
from pathlib import Path

import pytest

from lowland.figures.paper import FIGURES
from lowland.sweeps import Training


def test_every_figure_is_listed(run) -> None:
    code, out, _ = run("figure", "--list")
    assert code == 0
    for name, figure in FIGURES.items():
        assert name in out
        assert all(word in out for word in figure.source.split()), "cells are folded"


def test_a_list_needs_no_names_whatever_else_is_said(run) -> None:
    code, out, _ = run("figure", "--scale", "quick", "--list")
    assert code == 0
    assert "fig12" in out


def test_help_says_what_the_options_are(run) -> None:
    code, out, _ = run("figure", "--help")
    assert code == 0
    assert "--dry_run" in out


def test_a_dry_run_counts_and_writes_nothing(run) -> None:
    code, out, _ = run("figure", "all", "--dry-run", "--scale", "paper")
    assert code == 0
    assert all(name in out for name in FIGURES)
    assert "core-minutes" in out
    assert not Path("runs").exists()


def test_a_figure_is_made_and_made_again_from_what_is_there(run) -> None:
    words = ("figure", "diagonal-notebook-1", "diagonal-interpolation", "--engine", "here", "--out", "out")
    code, out, _ = run(*words)
    assert code == 0
    assert "1/2  diagonal-" in out
    assert "agrees" in out
    assert "picture: out/diagonal-notebook-1-quick/figure.png" in out
    code, out, _ = run(*words)
    assert code == 0
    assert "1/2" not in out
    code, out, _ = run("report", "out", "--out", "page")
    assert code == 0
    assert out == "2 figures, 0 sweeps, 0 own runs: page/index.html\n"
    assert "largest relative deviation" in Path("page/index.html").read_text()


@pytest.mark.usefixtures("tiny_figures")
def test_a_failed_run_is_told_with_exit_code_1_and_the_others_are_drawn(run, monkeypatch) -> None:
    carry_out = Training.carry_out

    def failing(self, store, how) -> None:
        if self.config.seed == 1:
            raise OSError("the disk is full")
        carry_out(self, store, how)

    monkeypatch.setattr(Training, "carry_out", failing)
    code, out, _ = run("figure", "convergence", "--engine", "here", "--out", "out")
    assert code == 1
    assert "drawn without 2 of its runs" in out
    assert "OSError: the disk is full" in out
    about = json.loads(Path("out/convergence-quick/figure.json").read_text())
    assert set(about["missing"].values()) == {"OSError: the disk is full"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("figure", "fig2"), "figure must be one of fig1, m-sweep"),
        (("figure",), "names of figures must come before the options, lowland figure NAME ..., got none."),
        (("figure", "fig1", "--scale", "huge"), "--scale must be one of quick, small, paper, got 'huge'."),
        (("figure", "fig1", "--jobs", "0"), "jobs must be positive, got 0."),
        (("figure", "fig1", "--engine", "here", "--jobs", "2"), "jobs must be left out for engine here"),
        (("figure", "fig1", "--device", "abacus"), "device must be one of this machine's, got 'abacus'"),
        (("figure", "fig1", "--data_dir", "nowhere"), "data_dir must be an existing folder"),
        (("figure", "fig1", "--list"), "names of figures must be left out with --list, got fig1."),
        (("figure", "--list", "--scale", "paper"), "scale must be left out with --list, which only names"),
        (("figure", "fig1", "--dry_run", "--jobs", "2"), "jobs must be left out with --dry-run"),
        (("figure", "fig6", "--device", "cpu"), "device must be left out for figures without deep"),
        (("report", "nowhere"), "a directory is needed, but there is no directory nowhere."),
        (("report", "."), "there must be a figure or a finished run to report, got none in .."),
        (("report",), "directories must come before the options"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(run, words, message) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith(f"lowland: {message}")
    assert err.count("\n") == 1
    assert not Path("runs").exists()
