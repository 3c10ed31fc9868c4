"""Operations in place: on what a rule has made, and on the batch."""

import torch
from torch import nn

from ..models import parameter
from .making import images, plain, sequences, squared, two_layers, vectors, words
from .registry import exact, refused


def made(layer, x, width):
    return squared(nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width, 2)), x)


@exact
def relu_in_place_after_linear():
    return made(nn.Linear(4, 5), vectors(), 5)


@exact
def relu_in_place_after_a_wide_linear():
    return made(nn.Linear(4, 3), sequences(30), 90)


@exact
def relu_in_place_after_convolution():
    return made(nn.Conv2d(2, 3, 2), images(), 27)


@exact
def relu_in_place_after_transposed_convolution():
    return made(nn.ConvTranspose2d(2, 3, 2), images(), 75)


@exact
def relu_in_place_after_batch_norm():
    return made(nn.BatchNorm2d(2), images(), 32)


@exact
def relu_in_place_after_batch_norm_in_evaluation():
    module, loss, batch = made(nn.BatchNorm2d(2), images(), 32)
    module.eval()
    return module, loss, batch


@exact
def relu_in_place_after_group_norm():
    return made(nn.GroupNorm(2, 2), images(), 32)


@exact
def relu_in_place_after_instance_norm():
    return made(nn.InstanceNorm2d(2, affine=True), images(), 32)


@exact
def relu_in_place_after_layer_norm():
    return made(nn.LayerNorm(4), vectors(), 4)


@exact
def relu_in_place_after_rms_norm():
    return made(nn.RMSNorm(4), vectors(), 4)


@exact
def relu_in_place_after_addition():
    return two_layers(lambda s, x: s.b((s.a(x) + x).relu_()))


@exact
def relu_in_place_after_embedding():
    return squared(nn.Sequential(nn.Embedding(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), words())


@exact
def addition_in_place_to_what_a_linear_layer_made():
    def forward(s, x):
        y = s.a(x)
        y += x
        y[:, 0] *= 2.0
        return s.b(y)

    return two_layers(forward)


@exact
def parameter_added_in_place_to_an_activation():
    def forward(s, x):
        y = 2.0 * s.a(x).tanh()
        y += s.c
        y[:, :2] = s.c[2:]
        return s.b(y.addcmul_(x, s.c))

    return two_layers(forward, c=parameter(4))


@refused("indexing, which writes to a tensor that all groups share")
def parameter_written_to_a_tensor_that_is_made_in_the_loss():
    def forward(s, x):
        y = torch.zeros(4, dtype=x.dtype)
        y[1:3] = s.c[:2]
        return s.b(s.a(x).tanh() + y)

    return two_layers(forward, c=parameter(4))


@refused("copy_, which changes a buffer")
def parameter_written_to_a_buffer():
    def forward(s, x):
        s.n.copy_(s.c.detach())
        return s.b(s.a(x).tanh() + s.n)

    return two_layers(forward, c=parameter(4), n=torch.zeros(4, dtype=torch.float64))


@refused("mul_, which changes the batch")
def input_changed_in_place_by_the_loss():
    return two_layers(lambda s, x: plain(s, x.mul_(0.5)))
