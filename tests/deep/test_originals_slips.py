"""The page about the original leaves out no option."""

import dataclasses
import re
from pathlib import Path

import pytest

from lowland.deep import TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "originals_slips.md").read_text(encoding="utf-8")
SHARPNESS = (
    *("rho", "step_size_mult", "n_iters", "n_restarts", "n_eval_sharpness", "bs_sharpness"),
    *("layer_name_pattern", "sharpness_rand_init", "no_grad_norm", "apply_step_size_schedule"),
    *("random_targets", "batch_transfer", "merge_bn_stats", "scale_last_layer", "sharpness_on_test_set"),
)
ELSEWHERE = ("gpu", "debug", "exp_name", "thresholds", "normalized_gd", "wd")


@pytest.mark.parametrize(
    "option", [*(field.name for field in dataclasses.fields(TrainConfig)), *SHARPNESS, *ELSEWHERE]
)
def test_every_option_is_on_the_page(option: str) -> None:
    assert re.search(rf"`{option}`", PAGE)


def test_options_on_the_page_that_are_ours_exist() -> None:
    alone = re.search(r"Ours alone: (.*)\.", PAGE)
    assert alone is not None
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(re.findall(r"`(\w+)`", alone[1])) <= names
