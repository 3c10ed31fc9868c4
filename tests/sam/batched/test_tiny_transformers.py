"""The batched engine on tiny BERT, GPT-2, ViT and ConvNeXt of ``transformers``, with random weights."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from lowland.sam import Functional

from ..naive import relative_error, tensors
from .agreement import assert_engines_agree, ran

transformers = pytest.importorskip("transformers")

B, LENGTH, WORDS = 3, 5, 11
ATTENTIONS = ["eager", "sdpa"]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

SINGLE = {("gpt2_with_its_own_loss", "eager"), ("gpt2_with_its_own_loss", "sdpa"), ("vit", "eager")}
"""In part float32 in ``transformers`` itself: GPT-2's loss, and the softmax of ViT's eager attention."""


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
    """Padding is told by a mask of two dimensions, as a tokenizer returns it.

    ``transformers`` asks whether anything is masked at all, and goes another way where nothing is.
    """
    options = {"vocab_size": WORDS, "max_position_embeddings": 6, "num_labels": 3} | SMALL | DRY
    config = transformers.BertConfig(attn_implementation=attention, **options)
    module = made(transformers.BertForSequenceClassification, config)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    batch = {"input_ids": words() * mask, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}
    return module, lambda batch: module(**batch).loss, (batch,)


def bert_with_a_whole_mask(attention):
    """Padding is told by what is added to the attention scores, a mask of four dimensions."""
    module, loss, (batch,) = bert(attention)
    hidden = (batch["attention_mask"] == 0)[:, None, None].expand(B, 1, LENGTH, LENGTH)
    return module, loss, (batch | {"attention_mask": -1e3 * hidden.double()},)


def gpt2(attention):
    options = {"vocab_size": WORDS, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
    options |= {
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = transformers.GPT2Config(attn_implementation=attention, **options)
    module = made(transformers.GPT2LMHeadModel, config)
    assert module.lm_head.weight is module.transformer.wte.weight

    def loss(ids):  # the module's own is in float32
        logits = module(input_ids=ids).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return module, loss, (words(),)


def gpt2_with_its_own_loss(attention):
    module, _, batch = gpt2(attention)
    return module, lambda ids: module(input_ids=ids, labels=ids).loss, batch


def vit(attention):
    options = {"image_size": 8, "patch_size": 4, "num_labels": 3} | SMALL | DRY
    config = transformers.ViTConfig(attn_implementation=attention, **options)
    return of_images(made(transformers.ViTForImageClassification, config), images())


def convnext(_):
    options = {"hidden_sizes": [4, 6], "depths": [1, 2], "num_stages": 2, "patch_size": 2, "num_labels": 3}
    config = transformers.ConvNextConfig(drop_path_rate=0.0, **options)
    return of_images(made(transformers.ConvNextForImageClassification, config), images(16))


def of_images(module, x):
    return module, lambda x, y: module(pixel_values=x, labels=y).loss, (x, torch.tensor([0, 2, 1]))


CASES = [
    pytest.param(make, attention, id=f"{make.__name__}-{attention}")
    for make in (bert, bert_with_a_whole_mask, gpt2, gpt2_with_its_own_loss, vit)
    for attention in ATTENTIONS
] + [pytest.param(convnext, None, id="convnext")]


def tolerance(make, attention):
    return 1e-6 if (make.__name__, attention) in SINGLE else 1e-10


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(("make", "attention"), CASES)
def test_gradient_is_that_of_the_loop_and_every_parameter_has_one(make, attention, m):
    found = assert_engines_agree(lambda: make(attention), tolerance(make, attention), m=m, recorded=m == 2)
    assert all(g is not None for g in found.gradients)


@pytest.mark.parametrize(("make", "attention"), CASES)
def test_several_steps_with_a_penalty_agree_too(make, attention):
    assert_engines_agree(lambda: make(attention), tolerance(make, attention), m=1, steps=2, l2=0.1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bert_with_padding_in_some_groups_only_agrees_with_the_loop(attention):
    def partly_padded():
        module, loss, (batch,) = bert(attention)
        batch["attention_mask"][::2] = 1
        return module, loss, (batch,)

    assert_engines_agree(partly_padded, 1e-10, m=1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bert_with_padding_is_trained_by_auto_whatever_it_takes(attention, monkeypatch):
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    expected, _ = ran("loop", lambda: bert(attention), m=1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found, _ = ran("auto", lambda: bert(attention), m=1)
    assert relative_error(found.gradients, expected.gradients) <= 1e-10
    assert len([w for w in heard if "one after the other" in str(w.message)]) <= 1


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("m", [1, 2, 3])
def test_functional_sam_of_padded_gpt2_is_two_passes_by_hand_and_counts_tokens(m, attention):
    def padded():
        module, _, (ids,) = gpt2(attention)
        mask = torch.ones_like(ids)
        mask[1, 3:] = 0
        loss = Functional(lambda batch: module(batch["ids"], attention_mask=batch["mask"]), next_token)
        return module, loss, ({"ids": ids, "mask": mask, "labels": ids.masked_fill(mask == 0, -100)},)

    def tokens(batch):
        return (batch["labels"][:, 1:] != -100).sum().item()

    found = assert_engines_agree(padded, 1e-10, m=m, weight=tokens)
    module, _, (batch,) = padded()
    params, expected, counted = list(module.parameters()), 0.0, tokens(batch)
    before = [p.detach().clone() for p in params]
    for start in range(0, B, m):
        group = {key: value[start : start + m] for key, value in batch.items()}
        logits = module(group["ids"], attention_mask=group["mask"]).logits
        given = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(next_token(given, group), given)
        g = torch.autograd.grad(logits, params, slope)
        with torch.no_grad():
            for p, t in zip(params, g, strict=True):
                p.add_(0.1 * t / torch.cat([t.flatten() for t in g]).norm())
        logits = module(group["ids"], attention_mask=group["mask"]).logits
        share = tokens(group) / counted
        moved = torch.cat([t.flatten() for t in torch.autograd.grad(logits, params, slope)])
        expected = expected + share * moved
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.copy_(w)
    assert relative_error([torch.cat([g.flatten() for g in found.gradients])], [expected]) <= 1e-10


def next_token(outputs, batch):
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
