"""What runs otherwise: checkpoints, recurrent layers, embeddings, changed parameters, other precisions."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ..models import Through, parameter
from .making import plain, sequences, squared, two_layers, words
from .registry import exact, exact_to, refused


@exact
def checkpoint_without_reentrance():
    return two_layers(lambda s, x: s.b(checkpoint(lambda t: s.a(t).tanh(), s.a(x), use_reentrant=False)))


@refused(r"hooks on saved tensors, .*hooks_on_saved_tensors")
def hooks_on_saved_tensors():
    def forward(s, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return plain(s, x)

    return two_layers(forward)


@refused(r"gru, which torch\.func\.vmap cannot run")
def recurrent_layer():
    return squared(Through(lambda s, x: s.r(x)[0], r=nn.GRU(4, 3, batch_first=True)), sequences())


@refused(r"lstm, which torch\.func\.vmap cannot run")
def recurrent_layer_of_two_directions():
    layer = nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True)
    return squared(Through(lambda s, x: s.r(x)[0], r=layer), sequences())


@exact
def recurrent_cell():
    def forward(s, x):
        h = torch.zeros(len(x), 3, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = s.r(x[:, t], h)
        return h

    return squared(Through(forward, r=nn.GRUCell(4, 3)), sequences())


@refused("an embedding with max_norm, which changes its weights")
def embedding_with_a_maximal_norm():
    return squared(nn.Sequential(nn.Embedding(6, 4, max_norm=0.5), nn.Linear(4, 2)), words())


@refused("an embedding with sparse gradients")
def embedding_with_sparse_gradients():
    return squared(nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 2)), words())


@refused("an embedding with scale_grad_by_freq")
def embedding_with_gradients_by_frequency():
    return squared(nn.Sequential(nn.Embedding(6, 4, scale_grad_by_freq=True), nn.Linear(4, 2)), words())


@refused("clamp_, which changes a parameter")
def parameter_changed_in_place():
    def forward(s, x):
        with torch.no_grad():
            s.a.weight.clamp_(-0.3, 0.3)
        return plain(s, x)

    return two_layers(forward)


@refused(r"Tensor\.data")
def parameter_changed_through_its_data():
    def forward(s, x):
        s.a.weight.data.clamp_(-0.3, 0.3)
        return plain(s, x)

    return two_layers(forward)


@refused("an operation that changes a parameter in place")
def parameter_changed_through_a_detached_alias():
    def forward(s, x):
        s.a.weight.detach().mul_(0.9)
        return plain(s, x)

    return two_layers(forward)


@refused("an operation that changes a parameter in place")
def parameter_changed_through_a_view():
    def forward(s, x):
        with torch.no_grad():
            s.a.weight.view(-1).mul_(0.9)
        return plain(s, x)

    return two_layers(forward)


@exact
def complex_numbers_between_real_parameters():
    def forward(s, x):
        return torch.fft.irfft(torch.fft.rfft(s.a(x)) * torch.view_as_complex(s.w), n=4)

    return two_layers(forward, w=parameter(3, 2))


@refused(r"pad_sequence, which torch\.func\.vmap cannot run")
def padded_sequences_and_einsum():
    def forward(s, x):
        padded = pad_sequence([x[0], x[1, :2]], batch_first=True)
        return torch.einsum("btd,ed->be", padded, s.w) + s.a(x).mean()

    return squared(Through(forward, w=parameter(3, 4), a=nn.Linear(4, 2)), sequences())


@exact_to(5e-2)
def autocast_inside_the_loss():
    def forward(s, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = s.b(s.a(x.float()).tanh())
        return y.float()

    module, loss, (x,) = two_layers(forward)
    return module.float(), loss, (x.float(),)
