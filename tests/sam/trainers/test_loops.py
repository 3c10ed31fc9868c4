"""Loops as timm and diffusers have them, whose ``backward`` is called by something else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lowland import SAM

from ..naive import relative_error
from .by_hand import sam_by_hand


class NativeScaler:
    """As timm's, without float16."""

    def __call__(self, loss, optimizer, clip_grad, parameters, need_update):
        loss.backward()
        if need_update:
            nn.utils.clip_grad_norm_(parameters, clip_grad)
            optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double()


def mixed(x, y, draws):
    share = torch.rand((), generator=draws, dtype=x.dtype)
    y = F.one_hot(y, 3).to(x)
    return share * x + (1 - share) * x.flip(0), share * y + (1 - share) * y.flip(0)


def batches():
    draws = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(6, 4, dtype=torch.float64, generator=draws)
        yield mixed(x, torch.randint(3, (6,), generator=draws), draws)


def timm_loop(model, objective):
    """Two steps of two micro-batches, and the average of the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for i, batch in enumerate(batches()):
        loss = objective(lambda x, y: F.cross_entropy(model(x), y), *batch) / 2
        NativeScaler()(loss, optimizer, 0.1, model.parameters(), need_update=i % 2 == 1)
        if i % 2 == 1:
            average.update_parameters(model)
            optimizer.zero_grad()
    return [p.detach() for p in (*model.parameters(), *average.module.parameters())]


def timm_loop_by_hand(model, m, rho):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    average = [p.detach().clone() for p in model.parameters()]
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i, (x, y) in enumerate(batches()):
        groups = [(x[k : k + m], y[k : k + m]) for k in range(0, 6, m)]
        losses = [lambda net, x=x, y=y: F.cross_entropy(net(x), y) for x, y in groups]
        found = sam_by_hand(model, losses, [len(x) for x, _ in groups], rho)
        total = [t + g / 2 for t, g in zip(total, found, strict=True)]
        if i % 2 == 1:
            for p, t in zip(model.parameters(), total, strict=True):
                p.grad = t
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            moved = zip(average, model.parameters(), strict=True)
            average = [p.detach().clone() if i == 1 else (a + p.detach()) / 2 for a, p in moved]
            total = [torch.zeros_like(p) for p in model.parameters()]
    return [*(p.detach() for p in model.parameters()), *average]


@pytest.mark.parametrize("m", [6, 4, 1])
def test_loop_of_timm_is_that_by_hand(m):
    model = network()
    found = timm_loop(model, SAM(model, rho=0.2, m=m).objective)
    assert relative_error(found, timm_loop_by_hand(network(), m, 0.2)) < 1e-12


def test_loop_of_timm_at_radius_zero_is_the_one_without_sam():
    model, plain = network(), network()
    found = timm_loop(model, SAM(model, rho=0.0, m=2).objective)
    expected = timm_loop(plain, lambda loss, *batch: loss(*batch))
    assert relative_error(found, expected) < 1e-12


def unet(diffusers):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
    model = diffusers.UNet2DModel(norm_num_groups=2, block_out_channels=(4, 8), **blocks, **sizes)
    return model.double()


def transformer(diffusers):
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=8,
        patch_size=4, norm_num_groups=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    return model.double().eval()  # in training, it leaves out classes at random


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("accelerate")
    return pytest.importorskip("diffusers")


NETWORKS = {"unet": unet, "transformer": transformer}


def denoised(model, noisy, timesteps, noise):
    labels = {"class_labels": timesteps % 5} if type(model).__name__.startswith("DiT") else {}
    return F.mse_loss(model(noisy, timesteps, return_dict=False, **labels)[0], noise)


def drawn(diffusers):
    """Clean images, and what a loop draws for them."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    torch.manual_seed(2)
    clean = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    noise, timesteps = torch.randn_like(clean), torch.randint(0, 100, (4,))
    return clean, scheduler, (scheduler.add_noise(clean, noise, timesteps), timesteps, noise)


@pytest.mark.parametrize(("name", "m"), [("unet", 4), ("unet", 1), ("transformer", 2)])
def test_loop_of_diffusers_is_that_by_hand(diffusers, name, m):
    from accelerate import Accelerator

    *_, batch = drawn(diffusers)
    model, twin = (NETWORKS[name](diffusers) for _ in range(2))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    sam = SAM(model, rho=0.1, m=m, engine="loop")
    halves = [batch, tuple(t.flip(0) for t in batch)]
    for part in halves:
        with accelerator.accumulate(model):
            accelerator.backward(sam.objective(lambda *group: denoised(model, *group), *part))
    groups = [tuple(t[k : k + m] for t in part) for part in halves for k in range(0, 4, m)]
    losses = [lambda net, group=group: denoised(net, *group) for group in groups]
    expected = sam_by_hand(twin, losses, [1] * len(groups), 0.1)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert relative_error(found, expected) < 1e-10


def test_noise_that_is_drawn_in_the_loss_is_that_of_every_pass(diffusers):
    """And what the loop without SAM would have drawn."""
    clean, scheduler, _ = drawn(diffusers)
    model, seen = unet(diffusers), []

    def loss(clean):
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 100, (len(clean),))
        seen.append((noise, timesteps))
        return denoised(model, scheduler.add_noise(clean, noise, timesteps), timesteps, noise)

    torch.manual_seed(3)
    SAM(model, rho=0.1, steps=2).backward(loss, clean)
    after = torch.rand(())
    torch.manual_seed(3)
    noise, timesteps = torch.randn_like(clean), torch.randint(0, 100, (4,))
    assert torch.equal(after, torch.rand(()))
    assert len(seen) == 3
    assert all(torch.equal(n, noise) and torch.equal(t, timesteps) for n, t in seen)
    batch = scheduler.add_noise(clean, noise, timesteps), timesteps, noise
    twin = copy.deepcopy(model)
    twin.zero_grad()
    SAM(twin, rho=0.1, steps=2).backward(lambda *group: denoised(twin, *group), *batch)
    grads = [[p.grad for p in net.parameters() if p.grad is not None] for net in (model, twin)]
    assert relative_error(*grads) < 1e-12
