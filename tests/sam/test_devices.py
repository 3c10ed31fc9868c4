"""Parameters on several devices, of other number types, and frozen ones."""

import functools

import pytest
import torch
from torch import nn

from lowland import SAM, Unnormalized, perturbed, sam_gradient
from lowland.sam import Adaptive, Random, SurrogateGap

from .naive import bits, identity, mlp, naive_sam, norm, regression, relative_error, squared, tensors

accelerated = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="there is no accelerator on this machine"
)


def accelerator():
    return torch.device(torch.accelerator.current_accelerator().type, 0)


class OnTwoDevices(nn.Module):
    """The first layer on the CPU, the second on the accelerator."""

    def __init__(self, dtype):
        super().__init__()
        self.net = mlp(dtype=dtype)
        self.net[2].to(accelerator())

    def forward(self, x):
        return self.net[2](self.net[1](self.net[0](x)).to(accelerator())).to(x.device)


@accelerated
@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize(
    "options", [{}, {"l2": 0.1}, {"steps": 2}, {"ascent": Unnormalized()}, {"scale": 8.0}]
)
def test_parameters_on_two_devices_climb_by_one_norm(m, options):
    module, batch = OnTwoDevices(torch.float32), regression(dtype=torch.float32)
    before = [p.detach().cpu() for p in module.parameters()]
    given = {key: value for key, value in options.items() if key != "scale"}
    given["ascent"] = "unnormalized" if "ascent" in options else "l2"
    expected = naive_sam(mlp(dtype=torch.float32), squared, batch, rho=0.4, m=m, **given)
    result = sam_gradient(
        functools.partial(squared, module),
        list(module.parameters()),
        batch,
        rho=0.4,
        m=m,
        diagnostics=True,
        **options,
    )
    assert [g.device for g in result.gradients] == [p.device for p in module.parameters()]
    found = [g.cpu() / options.get("scale", 1.0) for g in result.gradients]
    assert relative_error(found, expected.gradients) < 1e-4
    assert [bits(p.cpu()) for p in module.parameters()] == [bits(p) for p in before]
    assert result.diagnostics.gradient_norm.tolist() == pytest.approx(expected.gradient_norms, rel=1e-4)


@accelerated
@pytest.mark.parametrize("ascent", [Adaptive(), Random()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_climb_moves_and_puts_back_parameters_on_two_devices(ascent, dtype):
    module, batch = OnTwoDevices(dtype), regression(dtype=dtype)
    before, seen = [bits(p.cpu()) for p in module.parameters()], []

    def loss(x, y):
        seen.append([bits(p.cpu()) for p in module.parameters()])
        return squared(module, x, y)

    sam = SAM(module, rho=5.0, ascent=ascent, combine=SurrogateGap(0.3))
    sam.backward(loss, *batch)
    assert [a != b for a, b in zip(seen[0], seen[1], strict=True)] == [True] * 4
    assert [bits(p.cpu()) for p in module.parameters()] == before
    assert [p.grad.device for p in module.parameters()] == [p.device for p in module.parameters()]


@accelerated
def test_draws_on_the_accelerator_are_the_same_in_both_passes_and_come_back_after_an_error():
    here, there = tensors(0, (3,), (2,), dtype=torch.float32)
    params, draws = [nn.Parameter(here), nn.Parameter(there.to(accelerator()))], []
    device = torch.get_device_module(accelerator())

    def loss(x, fails=False):
        draws.append(torch.rand(4, device=accelerator()).tolist())
        if fails:
            raise RuntimeError("stop")
        return sum(p.square().sum().cpu() for p in params) * x.mean()

    sam_gradient(loss, params, (torch.ones(2),), rho=0.1, m=1)
    assert draws[0] == draws[1] != draws[2] == draws[3]
    before = device.get_rng_state(accelerator())
    with pytest.raises(RuntimeError, match="stop"):
        sam_gradient(functools.partial(loss, fails=True), params, (torch.ones(2),), rho=0.1)
    assert torch.equal(device.get_rng_state(accelerator()), before)


@accelerated
def test_gradscaler_of_the_accelerator_scales_both_devices():
    module, batch = OnTwoDevices(torch.float32), regression(dtype=torch.float32)
    expected = naive_sam(mlp(dtype=torch.float32), squared, batch, rho=0.4).gradients
    scaler = torch.amp.GradScaler(accelerator().type, init_scale=16.0)
    SAM(module, rho=0.4).backward(functools.partial(squared, module), *batch, scale=scaler)
    assert relative_error([p.grad.cpu() for p in module.parameters()], [16 * g for g in expected]) < 1e-4


@accelerated
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("capture", ["replay", "compile"])
@pytest.mark.parametrize("amp", [False, True])
def test_recorded_steps_on_the_accelerator_draw_and_find_what_the_step_does(capture, amp):
    net = nn.Sequential(mlp(dtype=torch.float32), nn.Dropout(0.3)).to(accelerator())
    batch = [t.to(accelerator()) for t in regression(dtype=torch.float32)]
    scaler, found = torch.amp.GradScaler(accelerator().type, init_scale=16.0), []
    for mode in ("off", capture):
        sam = SAM(net, rho=0.4, m=1, engine="batched", capture=mode)
        for _ in range(4):
            net.zero_grad()
            torch.manual_seed(5)
            with torch.autocast(accelerator().type, dtype=torch.float16, enabled=amp):
                sam.backward(functools.partial(squared, net), *batch, scale=scaler)
        found.append([p.grad.clone() for p in net.parameters()])
    assert sam.captures.replayed == 2
    assert relative_error(*found) < (1e-2 if amp else 1e-4)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_refused_by_a_sentence(dtype):
    real, wave = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, dtype=dtype))
    before = identity([real, wave.detach().real])
    message = rf"^params must be real floating-point tensors, got {dtype}\.$"
    for sam in (SAM([real, wave], rho=0.1), SAM([real, wave], rho=0.0)):
        with pytest.raises(TypeError, match=message):
            sam.backward(lambda x: (real.sum() + wave.abs().sum()) * x.mean(), torch.ones(2))
    assert identity([real, wave.detach().real]) == before


def test_frozen_complex_parameters_stand_aside():
    module, wave = mlp(), nn.Parameter(torch.ones(3, dtype=torch.complex64), requires_grad=False)
    batch = regression()
    expected = naive_sam(module, squared, batch, rho=0.4).gradients
    SAM([*module.parameters(), wave], rho=0.4).backward(functools.partial(squared, module), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert wave.grad is None


@pytest.mark.parametrize("options", [{}, {"m": 2}, {"steps": 2}, {"l2": 0.5}, {"ascent": Random()}])
def test_frozen_parameters_stay_frozen_where_they_are(options):
    module, batch, seen = mlp(), regression(), []
    module[0].weight.requires_grad_(False)
    module[2].bias.requires_grad_(False)
    held = [module[0].weight, module[2].bias]
    before = identity(held)

    def loss(x, y):
        seen.append(identity(held) == before)
        return squared(module, x, y)

    sam, optimizer = SAM(module, rho=0.4, **options), torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sam.backward(loss, *batch)
        optimizer.step()
    assert all(seen)
    assert identity(held) == before
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, False]
    assert [p.grad is None for p in module.parameters()] == [True, False, False, True]


def test_parameters_that_are_frozen_and_thawed_between_steps_are_followed():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.4)
    for trained in (module[0], module[2], module):
        module.requires_grad_(False)
        trained.requires_grad_(True)
        module.zero_grad()
        sam.backward(functools.partial(squared, module), *batch)
        params = list(trained.parameters())
        g = torch.autograd.grad(squared(module, *batch), params)
        with perturbed(params, [0.4 * t / norm(g) for t in g]):
            expected = torch.autograd.grad(squared(module, *batch), params)
        assert relative_error([p.grad for p in params], expected) < 1e-12
        assert sum(p.grad is not None for p in module.parameters()) == len(params)
