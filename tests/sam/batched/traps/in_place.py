"""Operations in place: on what a rule has made, and on the batch."""

from torch import nn

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


@refused("mul_, which changes the batch")
def input_changed_in_place_by_the_loss():
    return two_layers(lambda s, x: plain(s, x.mul_(0.5)))
