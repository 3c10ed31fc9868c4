"""The models against the original's state dicts, hand-written computations and published counts."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lowland.deep.models import DEFAULT_WIDTHS, MODEL_NAMES, build_model, is_convolutional
from lowland.errors import InputError

ORIGINAL = json.loads((Path(__file__).parent / "original_state_dicts.json").read_text())
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet18_gn": (2, 2, 2, 2),
    "resnet_tiny": (1, 1, 1, 1),
    "resnet_tiny_gn": (1, 1, 1, 1),
    "resnet34": (3, 4, 6, 3),
    "resnet34_gn": (3, 4, 6, 3),
    "resnet34preact": (3, 4, 6, 3),
}
GROUP_NORM = [name for name in BLOCKS if name.endswith("_gn")]
PREACT = [name for name in BLOCKS if name != "resnet34"]
RESIDUAL = [*BLOCKS, "wrn28"]
TWO_LOGITS = ["resnet34", "wrn28", "vgg16"]  # for two classes, in the original's checkpoints
NARROW = {name: None if width is None else 4 for name, width in DEFAULT_WIDTHS.items()} | {"wrn28": 1}


def narrow(name: str, **options) -> nn.Module:
    """A small model in float64, from seed 0."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "model_width": NARROW[name]} | options
    return build_model(name, **options).double()


def images(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def output_shape(name: str, batch: tuple[int, int, int, int], **options) -> tuple[int, ...]:
    """Shape of the outputs for a batch of this shape; nothing is computed."""
    with torch.device("meta"):
        return tuple(narrow(name, image_shape=batch[1:], **options).eval()(torch.empty(batch).double()).shape)


def scrambled(model: nn.Module) -> nn.Module:
    """The model with norms, biases and running statistics away from their trivial values."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            noise = torch.rand(tensor.shape, dtype=tensor.dtype, generator=generator)
            tensor.copy_(noise - 0.5 if name.endswith(("bias", "mean")) else noise + 0.5)
    return model


class Reference:
    """The residual networks written out over a state dict, in evaluation mode."""

    def __init__(self, model: nn.Module, num_groups: int | None = None, beta: float | None = None) -> None:
        self.state = model.state_dict()
        self.num_groups = num_groups
        self.beta = beta

    def activated(self, x: Tensor) -> Tensor:
        """ReLU, or softplus with this beta."""
        return x.clamp(min=0) if self.beta is None else (1 + (self.beta * x).exp()).log() / self.beta

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.num_groups is None:
            mean = self.state[f"{name}.running_mean"][:, None, None]
            variance = self.state[f"{name}.running_var"][:, None, None]
            standard = (x - mean) / (variance + 1e-5).sqrt()
        else:
            groups = x.reshape(len(x), self.num_groups, -1)
            variance = groups.var(dim=2, correction=0, keepdim=True)
            standard = (groups - groups.mean(dim=2, keepdim=True)) / (variance + 1e-5).sqrt()
            standard = standard.reshape(x.shape)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return standard * weight[:, None, None] + bias[:, None, None]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def preact_block(self, name: str, x: Tensor, stride: int, shortcut: str) -> Tensor:
        activated = self.activated(self.norm(f"{name}.bn1", x))
        residual = self.conv(f"{name}.conv1", activated, stride)
        residual = self.conv(f"{name}.conv2", self.activated(self.norm(f"{name}.bn2", residual)))
        if f"{name}.{shortcut}.weight" in self.state:
            x = self.conv(f"{name}.{shortcut}", activated, stride)
        return x + residual

    def basic_block(self, name: str, x: Tensor, stride: int) -> Tensor:
        residual = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride)).clamp(min=0)
        residual = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", residual))
        if f"{name}.shortcut.0.weight" in self.state:
            x = self.norm(f"{name}.shortcut.1", self.conv(f"{name}.shortcut.0", x, stride))
        return (x + residual).clamp(min=0)

    def stages(
        self, x: Tensor, blocks: tuple[int, ...], block: Callable[[str, Tensor, int], Tensor]
    ) -> Tensor:
        for stage, depth in enumerate(blocks, start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                x = block(f"layer{stage}.{index}", x, stride)
        return x

    def preact_resnet(self, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
        x = self.stages(
            self.conv("conv1", x), blocks, lambda *block: self.preact_block(*block, shortcut="shortcut.0")
        )
        pooled = F.avg_pool2d(self.norm("bn", x).clamp(min=0), 4)
        return self.linear("linear", pooled.flatten(1))

    def resnet(self, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
        stem = self.norm("bn1", self.conv("conv1", x)).clamp(min=0)
        pooled = F.avg_pool2d(self.stages(stem, blocks, self.basic_block), 4)
        return self.linear("linear", pooled.flatten(1))

    def wrn28(self, x: Tensor) -> Tensor:
        x = self.conv("conv1", x)
        for stage in (1, 2, 3):
            for index in range(4):
                stride = 2 if stage > 1 and index == 0 else 1
                x = self.preact_block(f"block{stage}.layer.{index}", x, stride, shortcut="convShortcut")
        pooled = F.avg_pool2d(self.norm("bn1", x).clamp(min=0), 8)
        return self.linear("fc", pooled.flatten(1))


@pytest.mark.parametrize("entry", ORIGINAL)
def test_state_dict_is_the_originals_in_names_order_shapes_and_size(entry: str) -> None:
    name, width, num_classes = entry.split("|")
    with torch.device("meta"):
        model = build_model(
            name,
            num_classes=int(num_classes),
            model_width=int(width),
            image_shape=tuple(ORIGINAL[entry]["shape"][1:]),
        )
    ours = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert ours == list(ORIGINAL[entry]["keys"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == ORIGINAL[entry]["params"]


@pytest.mark.parametrize(
    ("name", "num_classes", "image_shape", "count"),
    [
        ("resnet18", 10, (3, 32, 32), 11_172_170),
        ("resnet18_gn", 10, (3, 32, 32), 11_172_170),
        ("resnet34", 100, (3, 32, 32), 21_328_292),
        ("resnet_tiny_gn", 10, (3, 32, 32), 308_378),
        ("wrn28", 10, (3, 32, 32), 36_479_194),  # the 36.5 M of WRN-28-10
        ("vgg16", 10, (3, 32, 32), 14_714_688 + 2 * (512 * 512 + 512) + 5_130),  # published convolutions
        ("lenet", 10, (1, 32, 32), 61_706),  # LeNet-5 with every channel connected
        ("fc", 10, (1, 28, 28), 784 * 512 + 512 + 5_130),
    ],
)
def test_default_width_gives_the_published_parameter_count(name, num_classes, image_shape, count) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes, image_shape=image_shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", PREACT)
def test_preactivation_resnet_equals_the_computation_written_out(name: str) -> None:
    model = scrambled(narrow(name, model_width=6)).eval()
    x = images(2, 3, 32, 32)
    reference = Reference(model, num_groups=3 if name in GROUP_NORM else None)
    torch.testing.assert_close(model(x), reference.preact_resnet(x, BLOCKS[name]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "resnet_tiny_gn"])
def test_the_last_activation_of_a_preactivation_resnet_is_relu_whatever_the_others(name: str) -> None:
    model = scrambled(narrow(name, model_width=6, activation="softplus2")).eval()
    x = images(2, 3, 32, 32)
    reference = Reference(model, num_groups=3 if name in GROUP_NORM else None, beta=2.0)
    torch.testing.assert_close(model(x), reference.preact_resnet(x, BLOCKS[name]), rtol=1e-8, atol=1e-8)


def test_postactivation_resnet_equals_the_computation_written_out() -> None:
    model = scrambled(narrow("resnet34")).eval()
    x = images(2, 3, 32, 32)
    expected = Reference(model).resnet(x, BLOCKS["resnet34"])
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [1, 2])
def test_wide_resnet_equals_the_computation_written_out(width: int) -> None:
    model = scrambled(narrow("wrn28", model_width=width)).eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x), Reference(model).wrn28(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [3, 1])
def test_vgg16_standardizes_colours_and_equals_the_computation_written_out(channels: int) -> None:
    model = scrambled(narrow("vgg16", image_shape=(channels, 32, 32))).eval()
    state, x = model.state_dict(), images(2, channels, 32, 32)
    hidden = x
    if channels == 3:
        colours = zip(x.unbind(1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        hidden = torch.stack([(c - mean) / deviation for c, mean, deviation in colours], dim=1)
    convolutions = iter([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
    for depth in (2, 2, 3, 3, 3):
        for index in (next(convolutions) for _ in range(depth)):
            weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            hidden = F.conv2d(hidden, weight, bias, padding=1).clamp(min=0)
        hidden = F.max_pool2d(hidden, 2)
    hidden = hidden.flatten(1)
    reference = Reference(model)
    for index in (0, 2):
        hidden = reference.linear(f"classifier.{index}", hidden).clamp(min=0)
    # The constants are those of float32.
    torch.testing.assert_close(model(x), reference.linear("classifier.4", hidden), rtol=1e-5, atol=1e-7)


def test_lenet_equals_the_computation_written_out() -> None:
    model = scrambled(narrow("lenet", image_shape=(1, 28, 28)))
    state, hidden = model.state_dict(), images(2, 1, 28, 28)
    for layer in ("conv1", "conv2"):
        hidden = F.conv2d(hidden, state[f"{layer}.weight"], state[f"{layer}.bias"]).clamp(min=0)
        hidden = F.max_pool2d(hidden, 2)
    assert hidden.shape == (2, 16, 4, 4)
    reference = Reference(model)
    hidden = reference.linear("fc1", hidden.flatten(1)).clamp(min=0)
    expected = reference.linear("fc3", reference.linear("fc2", hidden).clamp(min=0))
    torch.testing.assert_close(model(images(2, 1, 28, 28)), expected)


def test_cnn_stacks_stride_two_convolutions_and_a_linear_layer() -> None:
    model = scrambled(narrow("cnn", n_layers=3, model_width=5, image_shape=(2, 28, 26)))
    x = images(2, 2, 28, 26)
    *hidden, last = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in hidden] == [(5, 2, 3, 3), (5, 5, 3, 3), (5, 5, 3, 3)]
    assert last.weight.shape == (3, 5 * 4 * 4)
    expected = x
    for layer in hidden:
        expected = F.conv2d(expected, layer.weight, layer.bias, stride=2, padding=1).clamp(min=0)
    torch.testing.assert_close(model(x), expected.flatten(1) @ last.weight.T + last.bias)


def test_fc_has_the_hidden_layers_asked_for() -> None:
    model = scrambled(narrow("fc", n_layers=2, model_width=7, image_shape=(2, 3, 5)))
    x = images(4, 2, 3, 5)
    first, second, last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert (first.weight.shape, second.weight.shape, last.weight.shape) == ((7, 30), (7, 7), (3, 7))
    hidden = (x.reshape(4, 30) @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)


def test_linear_is_one_product_without_bias() -> None:
    model = narrow("linear", image_shape=(2, 3, 5))
    (weight,) = model.parameters()
    x = images(4, 2, 3, 5)
    torch.testing.assert_close(model(x), x.reshape(4, 30) @ weight.T)


@pytest.mark.parametrize("name", GROUP_NORM)
def test_every_group_norm_has_half_the_width_as_groups(name: str) -> None:
    norms = [module for module in narrow(name, model_width=6).modules() if "Norm" in type(module).__name__]
    assert len(norms) == 2 * sum(BLOCKS[name]) + 1
    assert {type(norm) for norm in norms} == {nn.GroupNorm}
    assert {norm.num_groups for norm in norms} == {3}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_one_backward_pass_gives_every_parameter_a_finite_gradient(name: str) -> None:
    size = 32 if name == "vgg16" else 16
    model = narrow(name, image_shape=(3, size, size))
    outputs = model(images(2, 3, size, size))
    assert outputs.shape == (2, 3)
    F.cross_entropy(outputs, torch.tensor([0, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_two_classes_have_one_output_or_two_where_the_original_has_two(name: str) -> None:
    assert output_shape(name, (5, 3, 32, 32), num_classes=2) == (5, 2 if name in TWO_LOGITS else 1)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "vgg16"])
def test_mnist_shaped_images_are_accepted(name: str) -> None:
    assert output_shape(name, (2, 1, 28, 28), num_classes=10) == (2, 10)


@pytest.mark.parametrize("name", [*RESIDUAL, "vgg16"])
def test_larger_images_are_averaged_into_the_same_model(name: str) -> None:
    assert output_shape(name, (1, 3, 64, 48)) == (1, 3)


@pytest.mark.parametrize("name", [*GROUP_NORM, "vgg16", "lenet", "cnn", "fc", "linear"])
def test_examples_do_not_see_each_other_without_batch_norm(name: str) -> None:
    model, x = narrow(name), images(3, 3, 32, 32)
    alone = torch.cat([model(example[None]) for example in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet_tiny_gn", "vgg16", "lenet", "cnn", "fc", "linear"])
def test_per_example_gradients_by_vmap_average_to_the_batch_gradient(name: str) -> None:
    model, x, y = narrow(name), images(3, 3, 32, 32), torch.tensor([0, 1, 2])
    params = dict(model.named_parameters())

    def loss(params, example, label):
        return F.cross_entropy(functional_call(model, params, (example[None],)), label[None])

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    F.cross_entropy(model(x), y).backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(per_example[parameter_name].mean(0), parameter.grad)


def convolution_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution of a block receives in one forward pass."""
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(("conv1", "conv2")) and "." in name:
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    model(x)
    return inputs


@pytest.mark.parametrize("name", ["resnet18", "resnet_tiny_gn", "resnet34", "wrn28"])
def test_dropout_acts_between_the_two_convolutions_of_every_block(name: str) -> None:
    model = narrow(name, droprate=0.25, activation="softplus1")
    inputs = convolution_inputs(model, images(2, 3, 32, 32))
    zeros = {layer: (values == 0).double().mean().item() for layer, values in inputs.items()}
    second = [share for layer, share in zeros.items() if layer.endswith("conv2")]
    assert len(second) == (12 if name == "wrn28" else sum(BLOCKS[name]))
    assert sum(second) / len(second) == pytest.approx(0.25, abs=0.02)
    assert min(second) > 0.05
    assert all(share == 0 for layer, share in zeros.items() if layer.endswith("conv1"))


@pytest.mark.parametrize("name", ["fc", "cnn"])
def test_dropout_acts_after_every_hidden_activation(name: str) -> None:
    model = narrow(name, droprate=0.25, activation="softplus1", n_layers=2, model_width=32)
    received: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    model(images(16, 3, 32, 32))
    first, *hidden = [(values == 0).double().mean().item() for values in received]
    assert first == 0
    assert hidden == pytest.approx([0.25, 0.25], abs=0.08)


@pytest.mark.parametrize("name", [*RESIDUAL, "fc", "cnn"])
def test_dropout_is_active_only_in_training(name: str) -> None:
    plain, x = narrow(name, activation="softplus1"), images(2, 3, 32, 32)
    model = narrow(name, activation="softplus1", droprate=0.5)
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model.eval()(x), plain.eval()(x))


def test_a_model_without_dropout_draws_no_random_numbers() -> None:
    model = narrow("resnet_tiny_gn")
    before = torch.get_rng_state()
    model(images(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("activation", "beta"), [("softplus10", 10.0), ("softplus1", 1.0), ("softplus0.5", 0.5)]
)
def test_number_of_softplus_is_its_beta(activation: str, beta: float) -> None:
    model = scrambled(narrow("fc", activation=activation, model_width=5, image_shape=(1, 2, 2)))
    x = images(4, 1, 2, 2)
    first, last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    z = x.reshape(4, 4) @ first.weight.T + first.bias
    assert (beta * z).max() < 20, "PyTorch's softplus is linear from there on"
    hidden = (1 + (beta * z).exp()).log() / beta
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "linear"])
def test_activation_is_used_everywhere(name: str) -> None:
    named = dict(narrow(name, activation="softplus10").named_modules())
    assert nn.Softplus in {type(module) for module in named.values()}
    relus = [key for key, module in named.items() if isinstance(module, nn.ReLU)]
    assert relus == (["activation"] if name in PREACT else [])


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name not in {"fc", "linear"}])
def test_convolutions_start_normal_with_variance_two_over_fan_out(name: str) -> None:
    model = narrow(name)
    convolutions = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Conv2d)]
    standard = torch.cat(
        [(w * math.sqrt(w.shape[0] * w.shape[2] * w.shape[3] / 2)).flatten() for w in convolutions]
    )
    error = 5 / math.sqrt(len(standard))  # five standard deviations of the mean of squares, and more
    assert standard.mean().item() == pytest.approx(0, abs=error)
    assert standard.square().mean().item() == pytest.approx(1, abs=math.sqrt(2) * error)
    assert (standard.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=error)


def test_a_wide_convolution_has_the_fan_out_and_not_the_fan_in_deviation() -> None:
    model = build_model("resnet_tiny", num_classes=10, model_width=32)
    weight = model.get_parameter("layer4.0.conv1.weight")
    assert weight.shape == (256, 128, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_biases_start_at_zero_and_norms_at_one(name: str) -> None:
    for module in narrow(name).modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert (module.weight == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()


def test_linear_weights_keep_the_default_of_pytorch() -> None:
    weight = build_model("fc", num_classes=10, image_shape=(1, 20, 20)).get_parameter("_model.1.weight")
    bound = 1 / math.sqrt(400)
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_scale_init_is_the_norm_of_the_linear_weight_and_keeps_its_direction() -> None:
    plain = narrow("linear").get_parameter("_model.1.weight")
    scaled = narrow("linear", scale_init=3.0).get_parameter("_model.1.weight")
    assert scaled.norm().item() == pytest.approx(3.0, rel=1e-6)
    torch.testing.assert_close(scaled / 3.0, plain / plain.norm(), rtol=1e-6, atol=1e-8)
    assert scaled.requires_grad


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_torch_seed_decides_the_weights(name: str) -> None:
    first, again = narrow(name).state_dict(), narrow(name).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = build_model(name, num_classes=3, model_width=NARROW[name]).double()
    assert not torch.equal(next(other.parameters()), next(iter(first.values())))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_models_run_in_the_default_dtype_and_in_half_precision(name: str) -> None:
    model = build_model(name, num_classes=3, model_width=NARROW[name]).eval()
    x = images(2, 3, 32, 32)
    assert model(x.float()).dtype == torch.float32
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_only_linear_and_fc_are_not_convolutional() -> None:
    assert [name for name in MODEL_NAMES if not is_convolutional(name)] == ["fc", "linear"]


@pytest.mark.parametrize("shape", [(1, 1, 100), (7, 1, 3)])
@pytest.mark.parametrize("name", ["fc", "linear"])
def test_models_that_are_not_convolutional_take_any_shape(name: str, shape: tuple[int, int, int]) -> None:
    assert output_shape(name, (2, *shape)) == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"model must be one of resnet18, .*, got 'resnet81'; nearest: resnet18.*"),
        ("zzz", {}, r"model must be one of resnet18, .*, got 'zzz'\.$"),
        ("fc", {"num_classes": 1}, r"num_classes must be at least 2, got 1\."),
        ("fc", {"image_shape": (1, 0, 3)}, r"image_shape must be positive numbers, got \(1, 0, 3\)\."),
        ("vgg16", {"image_shape": (1, 28, 28)}, r"vgg16 needs images of at least 32x32, got 28x28\."),
        ("vgg16", {"image_shape": (1, 32, 31)}, r"vgg16 needs images of at least 32x32, got 32x31\."),
        ("lenet", {"image_shape": (1, 15, 28)}, r"lenet needs images of at least 16x16, got 15x28\."),
        ("resnet18_gn", {"model_width": 15}, r"model_width must be even .* group normalization, got 15\."),
        ("resnet18", {"model_width": 0}, r"model_width must be positive, got 0\."),
        ("resnet18_gn", {"model_width": -2}, r"model_width must be positive, got -2\."),
        ("resnet18", {"droprate": 1.0}, r"droprate must be at least 0 and less than 1, got 1\.0\."),
        ("resnet18", {"droprate": -0.1}, r"droprate must be at least 0 and less than 1, got -0\.1\."),
        ("resnet18", {"droprate": math.nan}, r"droprate must be at least 0 and less than 1, got nan\."),
        ("cnn", {"n_layers": 0}, r"n_layers must be positive, got 0\."),
        ("linear", {"scale_init": -1.0}, r"scale_init must be non-negative and finite, got -1\.0\."),
        ("linear", {"scale_init": math.inf}, r"scale_init must be non-negative and finite, got inf\."),
        ("fc", {"activation": "tanh"}, r"activation must be 'relu' or 'softplusA' .*, got 'tanh'\."),
        ("fc", {"activation": "softplus"}, r"got 'softplus'\."),
        ("fc", {"activation": "softplus0"}, r"got 'softplus0'\."),
        ("fc", {"activation": "softplus-1"}, r"got 'softplus-1'\."),
        ("linear", {"droprate": 0.5}, r"droprate must stay 0\.0 for linear, since only .*, got 0\.5\."),
        ("linear", {"activation": "softplus1"}, r"activation must stay 'relu' for linear, .* 'softplus1'\."),
        ("linear", {"model_width": 8}, r"model_width must stay None for linear, .*, got 8\."),
        ("lenet", {"model_width": 8}, r"model_width must stay None for lenet, .*, got 8\."),
        ("vgg16", {"droprate": 0.5}, r"droprate must stay 0\.0 for vgg16, .*, got 0\.5\."),
        (
            "resnet18",
            {"n_layers": 2},
            r"n_layers must stay 1 for resnet18, since only cnn, fc use it, got 2\.",
        ),
        ("fc", {"scale_init": 1.0}, r"scale_init must stay 0\.0 for fc, since only linear use.* got 1\.0\."),
    ],
)
def test_a_request_that_means_nothing_is_refused_in_one_sentence(name, options, message) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, **({"num_classes": 10} | options))


def test_is_convolutional_refuses_unknown_names() -> None:
    with pytest.raises(InputError, match=r"nearest: linear"):
        is_convolutional("liner")
