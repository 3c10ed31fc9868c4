"""Adapters on frozen bases: exact at once, and nothing is recorded of what is frozen."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from lowland.sam import SAM, sam_gradient
from lowland.sam.batched.evaluator import Evaluator
from lowland.sam.batched.memory import held_bytes

from ..naive import Count, relative_error, rows, seeded, tensors
from .models import trained

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

B, LENGTH, WORDS = 4, 6, 50
CAUSAL = {"task_type": "CAUSAL_LM"}


def padded(labels=None):
    """Rows with padding and rows without, in turn."""
    ids = torch.randint(5, WORDS, (B, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[3, 3:] = 0
    classes = ids.masked_fill(mask == 0, -100) if labels is None else labels
    return ({"input_ids": ids * mask, "attention_mask": mask, "labels": classes},)


def llama(width=16):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, **sizes, **heads, **ends))


def bert():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes, **dry)
    )


class Images(nn.Module):
    """An embedding whose rows are images, a convolution, a norm and a linear layer."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(11, 3 * 36)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        maps = self.norm(self.conv(self.rows(x).view(-1, 3, 6, 6)))
        return self.head(maps.tanh().mean((2, 3)))


def of_words(model):
    return lambda batch: model(**batch).loss


def of_images(model):
    return lambda x, y: F.cross_entropy(model(x), y)


def adapted(base, *configs, dtype=torch.float64):
    """``base`` with adapters, all of them active, whose weights are such that each does something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(base, configs[0], adapter_name="0")
        for k, config in enumerate(configs[1:], 1):
            model.add_adapter(str(k), config)
        if len(configs) > 1:
            model.base_model.set_adapter([str(k) for k in range(len(configs))])
    if dtype is not None:
        model.to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.train()


def lora(**options):
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"]} | CAUSAL | options)


def of_layers(kind=None, **options):
    return (kind or peft.LoraConfig)(target_modules=["conv", "head"], **options)


LLAMA = {
    "LoRA": lambda: [lora()],
    "LoRA of all linear layers": lambda: [lora(target_modules="all-linear")],
    "LoRA with a bias": lambda: [lora(lora_bias=True, target_modules="all-linear")],
    "rank-stabilized LoRA": lambda: [lora(use_rslora=True)],
    "two LoRAs": lambda: [lora(), lora(r=3, target_modules=["q_proj", "down_proj"])],
    "LoRA of an embedding": lambda: [lora(target_modules=["embed_tokens", "q_proj"])],
    "LoRA and a saved head": lambda: [lora(modules_to_save=["lm_head"])],
    "LoRA and a saved embedding": lambda: [lora(modules_to_save=["embed_tokens"])],
    "LoRA and saved norms": lambda: [lora(modules_to_save=["norm"])],
    "LoRA and trainable tokens": lambda: [lora(trainable_token_indices=[6, 7])],
    "DoRA": lambda: [lora(use_dora=True, target_modules="all-linear")],
    "DoRA of an embedding": lambda: [lora(use_dora=True, target_modules=["embed_tokens", "q_proj"])],
    "IA3": lambda: [
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL)
    ],
    "LoKr": lambda: [peft.LoKrConfig(r=2, target_modules=["q_proj", "v_proj"], **CAUSAL)],
    "VeRA": lambda: [peft.VeraConfig(r=2, target_modules=["q_proj"], **CAUSAL)],
    "norms": lambda: [peft.LNTuningConfig(**CAUSAL)],
    "prompt tuning": lambda: [peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL)],
    "p-tuning": lambda: [peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **CAUSAL)],
    "prefix tuning": lambda: [peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL)],
}

OTHERS = {
    "LoRA of a classifier": lambda: (
        adapted(bert(), lora(target_modules=["query", "value"], task_type="SEQ_CLS")),
        of_words,
        padded(torch.tensor([0, 1, 1, 0])),
    ),
    "LoRA of a convolution": lambda: of_maps(of_layers(r=2)),
    "LoRA of an embedding of images": lambda: of_maps(peft.LoraConfig(r=2, target_modules=["rows", "conv"])),
    "DoRA of a convolution": lambda: of_maps(of_layers(r=2, use_dora=True)),
    "IA3 of a convolution": lambda: of_maps(of_layers(peft.IA3Config, feedforward_modules=["head"])),
    "LoRA and a saved norm and head": lambda: of_maps(
        peft.LoraConfig(r=2, target_modules=["conv"], modules_to_save=["norm", "head"])
    ),
}


def of_maps(config):
    return adapted(seeded(Images()), config), of_images, (torch.arange(B), torch.tensor([0, 2, 1, 0]))


def made(name):
    """The model, its loss, and a batch."""
    if name in OTHERS:
        model, loss, batch = OTHERS[name]()
    else:
        model, loss, batch = adapted(llama(), *LLAMA[name]()), of_words, padded()
    return model, loss(model), batch


def two_passes(params, loss, batch, rho, m):
    """m-SAM by plain loops: of each group a gradient, a step, a gradient, and a step back."""
    total = [torch.zeros_like(p) for p in params]
    for start in range(0, B, m):
        group = rows(batch, start, start + m)
        climb = torch.autograd.grad(loss(*group), params, allow_unused=True)
        length = torch.stack([g.double().norm() for g in climb if g is not None]).norm()
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, climb, strict=True):
                if g is not None:
                    p.add_((rho / length * g).to(p.dtype))
        found = torch.autograd.grad(loss(*group), params, allow_unused=True)
        with torch.no_grad():
            for p, w, t, g in zip(params, before, total, found, strict=True):
                p.copy_(w)
                if g is not None:
                    t.add_(g, alpha=m / B)
    return total


def assert_exact(model, loss, batch, m, *, engine="batched", tolerance=1e-10, rho=0.1):
    params = list(trained(model).values())
    expected = two_passes(params, loss, batch, rho, m)
    plain = two_passes(params, loss, batch, 0.0, B)
    assert relative_error(plain, expected) > 20.0 * tolerance  # the perturbation is not lost in it
    SAM(model, rho=rho, m=m, engine=engine).backward(loss, *batch)  # a warning is an error here
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    assert relative_error(found, expected) <= tolerance
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("m", [1, 2, B])
@pytest.mark.parametrize("name", [*LLAMA, *OTHERS])
def test_adapters_on_a_frozen_base_are_exact_at_once(name, m):
    assert_exact(*made(name), m)


@pytest.mark.parametrize("m", [1, B])
def test_a_base_in_evaluation_mode_is_exact_too(m):
    model, loss, batch = made("LoRA and saved norms")
    assert_exact(model.eval(), loss, batch, m)


@pytest.mark.parametrize("m", [1, 2])
def test_dropout_of_an_adapter_draws_the_same_in_both_passes(m):
    """The masks that were drawn are returned beside the loss, and the plain loop is given them."""
    model = adapted(llama(), lora(lora_dropout=0.5))
    (batch,) = padded()
    batch["attention_mask"][:] = 1
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    seen = []

    def keep(_, given, dropped):  # noqa: ARG001 - the hook's
        seen.append(2.0 * (dropped != 0.0).to(dropped))

    def drawn(batch):
        hooks = [d.register_forward_hook(keep) for d in layers]
        value, masks = model(**batch).loss, list(seen)
        seen.clear()
        for hook in hooks:
            hook.remove()
        return value, masks

    found = sam_gradient(drawn, trained(model), (batch,), rho=0.1, m=m, module=model, engine="batched")
    assert len(found.aux) == len(layers)
    assert 0.3 < float((found.aux[0] == 0.0).double().mean()) < 0.7

    def given(batch, *masks):
        hooks = [
            d.register_forward_hook(lambda _, x, y, k=k: x[0] * k)  # noqa: ARG005 - the hook's
            for d, k in zip(layers, masks, strict=True)
        ]
        value = model(**batch).loss
        for hook in hooks:
            hook.remove()
        return value

    expected = two_passes(list(trained(model).values()), given, (batch, *found.aux), 0.1, m)
    assert relative_error(found.gradients, expected) <= 1e-10


def test_frozen_weights_are_not_memory_of_each_group():
    """They are 2 MiB, what a group saves is a hundredth of it."""
    base = nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 64)).requires_grad_(False)
    model = seeded(nn.Sequential(nn.Linear(4, 64), base, nn.Linear(64, 3)))
    batch = (tensors(3, (B, 4))[0], torch.tensor([0, 2, 1, 0]))
    count = Count()

    def loss(x, y):
        count.add()
        return of_images(model)(x, y)

    SAM(model, rho=0.1, m=1, engine="batched", max_memory=2**20).backward(loss, *batch)
    assert len(count) == 3


class Coded(torch.Tensor):
    """Integers times a scale for each row: a weight that wraps two tensors, as quantized ones do."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Coded(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            kept = Coded(args[0].codes, args[0].scale)
            return return_and_correct_aliasing(func, args, kwargs or {}, kept)
        return func(*(a.codes * a.scale if isinstance(a, Coded) else a for a in args), **(kwargs or {}))


class LowRank(nn.Module):
    """A frozen linear layer of codes, and a product of low rank beside it."""

    def __init__(self, p, q):
        super().__init__()
        codes = torch.randint(-7, 8, (q, p), generator=torch.Generator().manual_seed(p))
        scale = 0.1 + torch.arange(q, dtype=torch.float64)[:, None] / (8 * q)
        self.base = nn.Linear(p, q)
        self.base.weight = nn.Parameter(Coded(codes.to(torch.int8), scale), requires_grad=False)
        self.base.bias = nn.Parameter(torch.ones(q, dtype=torch.float64), requires_grad=False)
        a, b = tensors(p + q, (2, p), (q, 2))
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x):
        return self.base(x) + x @ self.a.t() @ self.b.t()


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("m", [1, 2, B])
def test_frozen_weights_that_wrap_other_tensors_are_exact(m, engine):
    model = nn.Sequential(LowRank(5, 7), nn.Tanh(), LowRank(7, 3))
    batch = (tensors(3, (B, 5))[0], torch.tensor([0, 2, 1, 0]))
    assert_exact(model, of_images(model), batch, m, engine=engine)


def int8():
    return pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()


def int4():
    quantization = pytest.importorskip("torchao.quantization")
    groups = quantization.PerGroup(32)
    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)


@pytest.fixture(scope="module", params=["int8", "int4", "int8 in bfloat16", "whole in bfloat16"])
def of_fewer_bits(request):
    """LoRA on a base of fewer bits, and how far rounding may lead.

    ``torchao`` takes no float64. Its own bfloat16 rounds to three digits, the adapters are float32.
    """
    kind, _, half = request.param.partition(" in ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize = pytest.importorskip("torchao.quantization").quantize_
        base = llama(32).to(torch.bfloat16 if half else torch.float32).requires_grad_(False)
        linear = {name for name, layer in base.model.named_modules() if isinstance(layer, nn.Linear)}
        if kind != "whole":
            quantize(base.model, {"int8": int8, "int4": int4}[kind](), lambda _, name: name in linear)
    model = adapted(base, lora(target_modules=["q_proj", "v_proj", "o_proj"]), dtype=None)
    assert ({type(p) for p in model.parameters()} > {nn.Parameter}) is (kind != "whole")
    return model, 1e-2 if half else 1e-4


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("m", [1, 2, B])
def test_lora_on_a_base_of_fewer_bits_is_exact_to_the_rounding_of_its_type(of_fewer_bits, m, engine):
    model, tolerance = of_fewer_bits
    model.zero_grad()
    assert_exact(model, of_words(model), padded(), m, engine=engine, tolerance=tolerance, rho=2.0)


class Recorded:
    """What a step at once records of gradients, and what its passes save for their backward passes."""

    def __init__(self, model, monkeypatch):
        self.of, self.products, self.kept, self.saved = [], 0, 0, 0
        self._known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._alive = []
        record = Evaluator.recorded

        def noted(evaluator, *args, **options):
            found = record(evaluator, *args, **options)
            self.of += [tuple(w.shape) for w in evaluator.objective.params]
            self.products, self.kept = len(found.products), held_bytes(found.gradient)
            return found

        monkeypatch.setattr(Evaluator, "recorded", noted)
        loss, (batch,) = of_words(model), padded()
        batch["attention_mask"][:] = 1
        sam = SAM(model, rho=0.1, m=1, engine="batched")
        sam.backward(loss, batch)  # tries a single group first
        self.of.clear()
        with torch.autograd.graph.saved_tensors_hooks(self._note, lambda t: t):
            sam.backward(loss, batch)
        self.plain = self._of_plain_pass(loss, batch)

    def _note(self, tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._known:
            self._known.add(memory.data_ptr())
            self._alive.append(memory)
            self.saved += memory.nbytes()
        return tensor

    def _of_plain_pass(self, loss, batch):
        before, self.saved = self.saved, 0
        with torch.autograd.graph.saved_tensors_hooks(self._note, lambda t: t):
            loss(batch).backward()
        plain, self.saved = self.saved, before
        return plain


def test_nothing_is_recorded_of_frozen_layers(monkeypatch):
    """Two layers of two adapted matrices each; of the full model, fifteen matrices."""
    with monkeypatch.context() as patch:
        whole = Recorded(llama(64).double().train(), patch)
    with monkeypatch.context() as patch:
        model = adapted(llama(64), lora())
        part = Recorded(model, patch)
    assert part.of == [tuple(p.shape) for p in trained(model).values()]
    assert (part.products, whole.products) == (8, 15)
    assert part.kept < 0.25 * whole.kept
    # Both passes of a step save what a plain pass with the same adapters does, and far less than all of it.
    assert part.saved <= 1.05 * 2 * part.plain
    assert part.saved < 0.8 * whole.saved
