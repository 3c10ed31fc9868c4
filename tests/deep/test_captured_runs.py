"""Training records its steps where the loss is ours: nothing changes but the time that they take."""

import pytest
import torch

from lowland.deep import TrainConfig, TrainState, load_data
from lowland.deep.state import _capture

COMMON = {"dataset": "digits", "batch_size": 32, "engine": "batched", "sam_rho": 0.1, "epochs": 20}
FC = {"model": "fc", "n_layers": 1, "model_width": 16}


def trained(steps, capture=None, **options):
    config = TrainConfig(**(COMMON | options))
    state = TrainState(config, load_data(config), torch.device("cpu"))
    if capture is not None:
        state.sam.capture = capture
    for _ in range(steps):
        if state.iteration == state.steps_per_epoch:
            state.next_epoch()
        state.step()
    return state


@pytest.mark.parametrize(
    "options",
    [
        FC | {"n_layers": 2, "m": 1},
        {
            "model": "fc",
            "n_layers": 2,
            "model_width": 16,
            "m": 8,
            "droprate": 0.3,
            "l2_reg": 1e-3,
            "sam_iters": 2,
        },
        {
            "model": "fc",
            "n_layers": 1,
            "model_width": 16,
            "m": 16,
            "sam_use_prev_batch": True,
            "p_label_noise": 0.2,
        },
        {"model": "resnet_tiny", "model_width": 4, "m": 16, "batch_size": 64},
        {"model": "resnet_tiny_gn", "model_width": 4, "m": 8, "only_sam_step_size": True},
        FC | {"m": 8, "half_prec": "bf16"},
    ],
    ids=lambda options: options["model"],
)
def test_run_is_the_same_bit_for_bit_with_recorded_steps_and_without(options):
    recorded, plain = trained(12, **options), trained(12, "off", **options)
    assert recorded.sam.captures.replayed >= 9
    assert recorded.sam.captures.recorded >= 1
    assert plain.sam.captures is None
    for a, b in zip(recorded.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(recorded.sums, plain.sums)


def test_steps_of_the_loop_are_not_recorded():
    assert trained(1, model="linear", engine="loop").sam.capture == "off"


@pytest.mark.parametrize("own", [{"loss": "some.module:function"}, {"model": "some.module:function"}])
def test_steps_of_a_model_or_a_loss_of_the_users_are_not_recorded(own):
    options = COMMON | {"model": "linear"} | own
    assert _capture(TrainConfig(**options)) == "off"
    assert _capture(TrainConfig(**COMMON, model="linear")) == "replay"
