"""Batch norm and other buffers: statistics, counters and averages that move, are read, or are replaced."""

import torch
from torch import nn

from .making import normed, plain, two_layers
from .registry import exact, refused


@exact
def batch_norm_after_several_groups():
    return normed(momentum=0.3)


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def batch_norm_with_a_cumulative_average():
    return normed(momentum=None)


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def running_statistics_read_after_the_layer():
    return normed(lambda s, x: s.b(s.n(s.a(x)).tanh() * (1.0 + s.n.running_mean)))


@refused("running statistics that are read before they move")
def running_statistics_read_before_the_layer():
    def forward(s, x):
        factor = 1.0 + s.n.running_mean
        return s.b(s.n(s.a(x)).tanh() * factor)

    return normed(forward)


@refused("running statistics that are read before they move")
def batch_norm_in_evaluation_then_in_training():
    def forward(s, x):
        s.n.eval()
        with torch.no_grad():
            teacher = s.b(s.n(s.a(x)).tanh())
        s.n.train()
        return s.b(s.n(s.a(x)).tanh()) + teacher

    return normed(forward)


@refused("running statistics that are read before they move")
def batch_norm_in_evaluation_without_gradient_then_in_training():
    def forward(s, x):
        s.n.eval()
        with torch.no_grad():
            y = s.n(s.a(x))
        s.n.train()
        return s.b((y + s.n(s.a(x))).tanh())

    return normed(forward)


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def batch_norm_in_training_then_in_evaluation():
    def forward(s, x):
        y = s.n(s.a(x))
        s.n.eval()
        y = y + s.n(s.a(x))
        s.n.train()
        return s.b(y.tanh())

    return normed(forward)


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def instance_norm_in_training_then_in_evaluation():
    def forward(s, x):
        x = x[:, :, None] * torch.arange(1.0, 4.0)
        y = s.n(x)
        s.n.eval()
        y = y + s.n(x)
        s.n.train()
        return s.b(s.a(y.sum(-1).tanh()))

    return two_layers(forward, n=nn.InstanceNorm1d(4, track_running_stats=True))


@exact
def synchronized_batch_norm():
    return two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.SyncBatchNorm(4))


@exact
def synchronized_batch_norm_in_evaluation():
    module, loss, batch = two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.SyncBatchNorm(4))
    module.eval()
    return module, loss, batch


def writing(write, buffer, read=lambda _: 1.0):
    def forward(s, x):
        write(s, x)
        return plain(s, x) * read(s)

    return two_layers(forward, n=buffer)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@exact
def counter():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0))


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def counter_that_scales_the_output():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0), lambda s: torch.sigmoid(s.n / 3.0))


@refused("add_, which changes a buffer")
def counter_that_is_read_before_it_counts():
    def forward(s, x):
        factor = s.n / 3.0
        s.n.add_(1)
        return plain(s, x) * (1.0 + factor)

    return two_layers(forward, n=torch.tensor(0))


@refused(r"a buffer that is read after it was changed \(batch norm with momentum=None\?\)")
def counter_that_decides_by_comparison():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0), lambda s: 2.0 if s.n > 2 else 1.0)


def assign(s, value):
    s.n = value


@refused("a change of the buffer n")
def counter_that_is_another_tensor_every_time():
    return writing(lambda s, _: assign(s, s.n + 1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_through_its_data():
    return writing(lambda s, _: s.n.data.add_(1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_through_a_detached_alias():
    return writing(lambda s, _: s.n.detach().add_(1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_through_a_view():
    return writing(lambda s, _: s.n.view(-1)[0].add_(1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_through_a_flat_view():
    return writing(lambda s, _: s.n.view(-1).add_(1), torch.tensor(0))


@refused("__ilshift__, which changes a buffer")
def counter_by_shifts():
    return writing(lambda s, _: s.n.__ilshift__(1), torch.tensor(1))


@refused("__ixor__, which changes a buffer")
def flag_that_is_flipped():
    return writing(lambda s, _: s.n.__ixor__(True), torch.tensor(False))


@refused("__ixor__, which changes a buffer")
def counter_that_is_flipped():
    return writing(lambda s, _: s.n.__ixor__(1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_of_floats_by_foreach():
    return writing(lambda s, _: torch._foreach_add_([s.n], 1), number(0.0))


@refused("a change of the buffer n")
def counter_by_foreach():
    return writing(lambda s, _: torch._foreach_add_([s.n], 1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_of_floats_by_set():
    return writing(lambda s, _: s.n.set_(s.n + 1), number(0.0))


@refused("a change of the buffer n")
def counter_by_set():
    return writing(lambda s, _: s.n.set_(s.n + 1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_of_floats_through_numpy():
    return writing(lambda s, _: s.n.numpy().__iadd__(1), number(0.0))


@refused("a change of the buffer n")
def counter_through_numpy():
    return writing(lambda s, _: s.n.numpy().__iadd__(1), torch.tensor(0))


@refused("a change of the buffer n")
def counter_by_an_operator_of_aten():
    return writing(lambda s, _: torch.ops.aten.add_.Scalar(s.n, 1), torch.tensor(0))


@refused("add_, which changes a buffer")
def counter_of_floats():
    return writing(lambda s, _: s.n.add_(1.0), number(0.0))


@refused("mul_, which changes a buffer")
def average_in_place():
    return writing(lambda s, x: s.n.mul_(0.9).add_(0.1 * x.mean()), number(1.0), lambda s: s.n)


@refused("lerp_, which changes a buffer")
def average_by_lerp():
    return writing(lambda s, x: s.n.lerp_(x.detach().mean(), 0.1), number(1.0), lambda s: s.n)


@refused("copy_, which changes a buffer")
def average_copied():
    return writing(lambda s, x: s.n.copy_(0.9 * s.n + 0.1 * x.mean()), number(1.0))


@refused("a change of the buffer n")
def average_that_is_another_tensor_every_time():
    return writing(lambda s, x: assign(s, 0.9 * s.n + 0.1 * x.mean()), number(1.0))


@refused("a change of the buffer n")
def average_that_is_another_tensor_and_scales_the_output():
    return writing(lambda s, x: assign(s, 0.9 * s.n + 0.1 * x.mean()), number(1.0), lambda s: s.n)


def becomes_double(s, x):
    assign(s, 0.9 * s.n + x.mean())


@refused("a change of the buffer n")
def average_that_becomes_a_tensor_of_another_type():
    return writing(becomes_double, torch.tensor(0.0))


@refused("a change of the buffer n")
def average_that_becomes_a_tensor_of_another_type_and_scales_the_output():
    return writing(becomes_double, torch.tensor(0.0), lambda s: torch.sigmoid(s.n / 3.0))


@refused("a tensor of the pass that is kept after it, as an attribute or in a list")
def average_that_is_an_attribute():
    def forward(s, x):
        s.average = 0.9 * s.average + 0.1 * x.detach().mean()
        return plain(s, x) * (1.0 + s.average)

    module, loss, batch = two_layers(forward)
    module.average = 0.0
    return module, loss, batch
