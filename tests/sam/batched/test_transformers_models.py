"""The batched engine on tiny networks of ``transformers`` with random weights: BERT, GPT-2, ViT and ConvNeXt."""

import pytest
import torch

from ..naive import tensors
from .agreement import assert_engines_agree, ran

transformers = pytest.importorskip("transformers")

B = 3
LENGTH = 5
WORDS = 11
ATTENTIONS = ["eager", "sdpa"]


def words(seed=6):
    return torch.randint(1, WORDS, (B, LENGTH), generator=torch.Generator().manual_seed(seed))


def images(size=8):
    return tensors(4, (B, 3, size, size))[0]


def made(model, config):
    """The model in float64 and in training, with weights that are not too small to matter."""
    torch.manual_seed(0)
    module = model(config).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def bert(attention):
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=LENGTH + 1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        attn_implementation=attention,
    )
    module = made(transformers.BertForSequenceClassification, config)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    batch = {"input_ids": words() * mask, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}
    return module, lambda batch: module(**batch).loss, (batch,)


def gpt2(attention):
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH + 1,
        n_embd=8,
        n_layer=2,
        n_head=2,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    module = made(transformers.GPT2LMHeadModel, config)
    assert module.lm_head.weight is module.transformer.wte.weight
    return module, lambda ids: module(input_ids=ids, labels=ids).loss, (words(),)


def vit(attention):
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        attn_implementation=attention,
    )
    module = made(transformers.ViTForImageClassification, config)
    labels = torch.tensor([0, 2, 1])
    return module, lambda x, y: module(pixel_values=x, labels=y).loss, (images(), labels)


def convnext(_):
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 6], depths=[1, 2], num_stages=2, patch_size=2, drop_path_rate=0.0, num_labels=3
    )
    module = made(transformers.ConvNextForImageClassification, config)
    labels = torch.tensor([0, 2, 1])
    return module, lambda x, y: module(pixel_values=x, labels=y).loss, (images(16), labels)


CASES = [
    pytest.param(make, attention, id=f"{make.__name__}-{attention}")
    for make in (bert, gpt2, vit)
    for attention in ATTENTIONS
] + [pytest.param(convnext, None, id="convnext")]


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(("make", "attention"), CASES)
def test_gradient_is_that_of_the_loop(make, attention, m):
    assert_engines_agree(lambda: make(attention), m=m)


@pytest.mark.parametrize(("make", "attention"), CASES)
def test_every_parameter_of_the_network_has_a_gradient(make, attention):
    """Otherwise less is compared than it seems."""
    found, module = ran("batched", lambda: make(attention), m=1)
    absent = [n for (n, _), g in zip(module.named_parameters(), found.gradients, strict=True) if g is None]
    assert not absent


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(attention):
    """The words behind the mask are of no consequence to any group."""
    found = []
    for other in (False, True):

        def make(other=other):
            module, loss, (batch,) = bert(attention)
            hidden = batch["attention_mask"] == 0
            ids = torch.where(hidden, words(7), batch["input_ids"]) if other else batch["input_ids"]
            return module, loss, (batch | {"input_ids": ids},)

        found.append(ran("batched", make, m=1)[0].gradients)
    table = next(
        i for i, (n, _) in enumerate(bert(attention)[0].named_parameters()) if "word_embeddings" in n
    )
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        if i != table:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "attention"), CASES)
def test_several_steps_with_a_penalty_agree_too(make, attention):
    assert_engines_agree(lambda: make(attention), m=1, steps=2, l2=0.1)
