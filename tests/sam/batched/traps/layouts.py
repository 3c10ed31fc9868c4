"""Layouts: dimensions that come first, are missing, or are as long as there are groups or examples."""

import torch
import torch.nn.functional as F
from torch import nn

from ..models import Through, parameter
from .making import B, sequences, squared, two_layers, words
from .registry import exact


@exact
def sequence_first_encoder_with_as_many_steps_as_examples():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
    module = Through(lambda s, x: s.layer(x.transpose(0, 1)).mean(0), layer=layer)
    return squared(module, sequences(2))


@exact
def sequence_first_attention_with_as_many_steps_as_groups():
    layer = nn.MultiheadAttention(4, 2)

    def forward(s, x):
        x = x.transpose(0, 1)
        return s.layer(x, x, x)[0]

    return squared(Through(forward, layer=layer), sequences(B // 2))


@exact
def place_embedding_without_a_batch_dimension():
    def forward(s, x):
        return s.b((s.a(x) + s.place + s.table(torch.arange(3))).tanh())

    return squared(
        Through(
            forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2), place=parameter(3, 4), table=nn.Embedding(3, 4)
        ),
        sequences(),
    )


@exact
def place_ids_with_a_batch_dimension_of_one():
    def forward(s, ids):
        return s.b((s.words(ids) + s.places(s.ids[:, : ids.shape[1]])).tanh())

    module = Through(forward, words=nn.Embedding(6, 4), places=nn.Embedding(5, 4), b=nn.Linear(4, 2))
    module.register_buffer("ids", torch.arange(5)[None])
    return squared(module, words())


@exact
def attention_with_as_many_keys_that_lack_dimensions_as_groups():
    return attention_with_keys_that_lack_dimensions(examples=6)


@exact
def attention_with_keys_that_lack_dimensions_and_as_many_features_as_groups():
    return attention_with_keys_that_lack_dimensions(examples=8)


def attention_with_keys_that_lack_dimensions(examples):
    def forward(s, x):
        q = s.a(x).view(-1, 1, 1, 4)
        k = s.a(x.mean(0)).view(1, 1, 4) + s.k
        return s.b(F.scaled_dot_product_attention(q, k, k).sum((1, 2)))

    return two_layers(forward, k=parameter(1, 3, 4), examples=examples)


@exact
def bias_of_one_element():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight, s.c).tanh()), c=parameter(1))


@exact
def bias_without_dimensions():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight, s.c).tanh()), c=nn.Parameter(torch.zeros(())))
