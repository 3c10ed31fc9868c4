"""Losses: means over the batch, gradients inside, labels to ignore, control flow that asks the data."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from ...naive import seeded
from ..models import parameter
from .making import plain, two_layers, vectors
from .registry import exact, refused


@exact
def mean_over_the_batch_in_the_model():
    return two_layers(lambda s, x: s.b((s.a(x) - s.a(x).mean(0)).tanh()))


@exact
def contrastive_loss_of_a_group():
    def forward(s, x):
        z = F.normalize(s.b(s.a(x).tanh()), dim=1)
        return F.cross_entropy(z @ z.roll(1, 0).t(), torch.arange(len(x)))[None]

    return two_layers(forward)


@refused("torch.autograd.grad inside the loss")
def gradient_penalty():
    def forward(s, x):
        x = x.detach().requires_grad_()
        y = plain(s, x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + g.square().sum()

    return two_layers(forward)


@refused(r"a transform of torch\.func inside the loss")
def gradient_of_gradients_by_torch_func():
    def forward(s, x):
        return plain(s, x) + torch.func.grad(lambda t: plain(s, t).sum())(x).square().sum()

    return two_layers(forward)


@refused(r"a transform of torch\.func inside the loss")
def gradient_of_an_elementwise_function_by_torch_func():
    def forward(s, x):
        return s.b(s.a(x) * torch.func.grad(lambda c: (x * c).tanh().sum())(s.c))

    return two_layers(forward, c=parameter(4))


@refused(r"a transform of torch\.func inside the loss")
def vmap_inside_the_loss():
    return two_layers(lambda s, x: torch.func.vmap(lambda t: plain(s, t))(x))


def classes(**options):
    module = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)))
    y = torch.tensor([0, 3, -100, 1, 2, 2])
    return module, lambda x, y: F.cross_entropy(module(x), y, **options), (vectors(), y)


@exact
def class_weights_and_an_index_to_ignore():
    return classes(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64))


@refused("a result whose shape depends on the data, by cross_entropy")
def label_smoothing_with_class_weights():
    return classes(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64), label_smoothing=0.2)


@exact
def group_whose_labels_are_all_ignored():
    module, loss, (x, y) = classes(reduction="sum")
    y[2:4] = -100
    return module, loss, (x, y)


@exact
def group_with_a_zero_gradient_among_others():
    module, _, (x,) = two_layers(plain)
    keep = torch.tensor([1.0, 1, 0, 0, 1, 1], dtype=torch.float64)
    return module, lambda x, keep: (module(x).square().mean(1) * keep).sum(), (x, keep)


@exact
def routing_that_differs_between_groups():
    return two_layers(lambda s, x: torch.where(x[:, :1] > 0, s.b(s.a(x)), s.b(x)))


@refused("a result whose shape depends on the data, by indexing")
def routing_by_boolean_indexing():
    def forward(s, x):
        y = torch.zeros(len(x), 3, dtype=x.dtype)
        up = x[:, 0] > 0
        y[up] = s.b(s.a(x[up]))
        y[~up] = s.b(x[~up])
        return y

    return two_layers(forward)


@exact
def branch_on_the_data():
    return two_layers(lambda s, x: plain(s, x) * 2 if x.sum() > 0 else plain(s, x))


@refused(r"a value that is read from a tensor, by \.item\(\)")
def item_of_an_activation():
    return two_layers(lambda s, x: plain(s, x) * x.abs().sum().item())


@refused(r"a value that is read from a tensor, by \.item\(\)")
def item_that_is_given_up_where_it_fails():
    def forward(s, x):
        try:
            factor = x.abs().sum().item()
        except RuntimeError:
            factor = 1.0
        return plain(s, x) * factor

    return two_layers(forward)


@refused(r"a value that is read from a tensor, by \.item\(\)")
def item_whose_failure_the_loss_raises_as_its_own():
    def forward(s, x):
        try:
            factor = x.abs().sum().item()
        except RuntimeError as error:
            raise ValueError("no factor") from error
        return plain(s, x) * factor

    return two_layers(forward)


@refused(r"Tensor\.register_hook inside the loss")
def hook_that_is_given_up_where_it_fails():
    def forward(s, x):
        y = s.a(x).tanh()
        with contextlib.suppress(Exception):
            y.register_hook(torch.neg)
        return s.b(y)

    return two_layers(forward)


@exact
def branch_on_the_data_in_a_block_that_catches_errors():
    def forward(s, x):
        try:
            up = bool(x.sum() > 0)
        except RuntimeError:
            up = True
        return plain(s, x) * (2.0 if up else 1.0)

    return two_layers(forward)


@refused(r"a value that is read from a tensor, by \.numpy\(\)")
def conversion_to_numpy():
    return two_layers(lambda s, x: plain(s, x) * float(x.detach().numpy().sum()))


@refused(r"a value that is read from a tensor, by \.numpy\(\)")
def conversion_of_a_weight_to_numpy():
    return two_layers(lambda s, x: plain(s, x) * float(s.a.weight.detach().numpy().sum()))


@refused(r"a value that is read from a tensor, by float\(\)")
def number_of_a_weight():
    return two_layers(lambda s, x: plain(s, x) * (1.0 + float(s.a.weight.detach()[0, 0]) ** 2))


@refused(r"equal, which torch\.func\.vmap cannot run")
def comparison_of_whole_tensors():
    return two_layers(lambda s, x: plain(s, x) * (2.0 if torch.equal(x, x.abs()) else 1.0))


@exact
def printed_tensor():
    def forward(s, x):
        assert str(x)
        return plain(s, x)

    return two_layers(forward)


@exact
def branch_on_requires_grad():
    def forward(s, x):
        h = s.a(x).tanh()
        return s.b(h) * (2.0 if h.requires_grad else 1.0)

    return two_layers(forward)


@exact
def branch_on_a_gradient_that_was_asked_for():
    def forward(s, x):
        t = x.clone().requires_grad_()
        return plain(s, t) * (2.0 if t.requires_grad else 1.0)

    return two_layers(forward)


@exact
def branch_on_requires_grad_of_what_a_rule_made():
    return two_layers(lambda s, x: plain(s, x) * (2.0 if s.a(x).requires_grad else 1.0))


@refused(r"Tensor\.is_leaf")
def branch_on_being_a_leaf():
    def forward(s, x):
        h = s.a(x).tanh()
        return s.b(h) * (2.0 if h.is_leaf else 1.0) * (3.0 if h.grad_fn is None else 1.0)

    return two_layers(forward)


@refused(r"Tensor\.is_leaf")
def branch_on_being_a_leaf_of_what_a_rule_made():
    return two_layers(lambda s, x: plain(s, x) * (2.0 if s.a(x).is_leaf else 1.0))


@refused(r"Tensor\.grad_fn")
def branch_on_the_graph_of_what_a_rule_made():
    return two_layers(lambda s, x: plain(s, x) * (3.0 if s.a(x).grad_fn is None else 1.0))
