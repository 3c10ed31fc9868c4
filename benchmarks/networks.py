"""Networks that SAM is timed on, with a random batch each, and the steps that are timed."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interleaved import Step
from lowland.deep.models import build_model
from lowland.sam import SAM

RHO = 0.05


@dataclass(frozen=True)
class Problem:
    """A model, its batch, and the mean cross entropy over them.

    Attributes:
        model: Gives logits, classes last.
        x: What it is given.
        y: Classes, one for each position of the logits.
    """

    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters, each once."""
        return list(self.model.parameters())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())

    def checkpoint(self) -> None:
        """Has the model run its layers again in its backward pass, which those of transformers can."""
        inner = self.model.train().model
        inner.gradient_checkpointing_enable({"use_reentrant": False})

    def gradient(self) -> tuple[Tensor, ...]:
        """Gradient of the whole batch."""
        return torch.autograd.grad(self.loss(self.x, self.y), self.params)


@dataclass(frozen=True)
class Network:
    """How to make a model and its batch.

    Attributes:
        title: What it is, in a table.
        make: Makes the model of a width.
        width: Its own width.
        batch: Its own number of examples.
        shape: Shape of an example.
        classes: Number of classes.
        tokens: Number of different tokens in ``x``; 0 for numbers.
        every_position: Whether each position has a class.
    """

    title: str
    make: Callable[[int], nn.Module]
    width: int
    batch: int
    shape: tuple[int, ...]
    classes: int = 10
    tokens: int = 0
    every_position: bool = False

    def problem(self, device: torch.device, *, batch: int | None = None, width: int | None = None) -> Problem:
        """The same problem each time.

        Raises:
            ImportError: If the library that makes the model is missing.
        """
        torch.manual_seed(0)
        model = self.make(width or self.width)
        size = (batch or self.batch, *self.shape)
        x = torch.randint(self.tokens, size) if self.tokens else torch.randn(size)
        y = torch.randint(self.classes, size if self.every_position else size[:1])
        return Problem(model.to(device), x.to(device), y.to(device))


def available(
    names: list[str], device: torch.device, batch: int | None = None
) -> Iterator[tuple[str, Problem]]:
    """The networks of these names that can be made here; says which cannot."""
    for name in names:
        try:
            yield name, NETWORKS[name].problem(device, batch=batch)
        except ImportError as error:
            print(f"{NETWORKS[name].title}: left out, needs {error.name}.")


def plain_step(problem: Problem) -> Step:
    """One gradient, which is what SGD needs before its update."""
    return problem.gradient


def ordinary_sam(problem: Problem) -> Step:
    """SAM with m = B by two passes, with as little beside them as plain PyTorch allows."""
    params = problem.params

    def step() -> tuple[Tensor, ...]:
        ascent = problem.gradient()
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(ascent)))
            torch._foreach_mul_(ascent, RHO / norm)
            before = [p.clone() for p in params]
            torch._foreach_add_(params, ascent)
        del ascent
        found = problem.gradient()
        with torch.no_grad():
            torch._foreach_copy_(params, before)
        return found

    return step


def m_sam(problem: Problem, engine: str, m: int) -> Step:
    """Our m-SAM gradient, after the call in which the engine is settled."""
    sam = SAM(problem.model, rho=RHO, m=m, engine=engine)

    def step() -> object:
        return sam.objective(problem.loss, problem.x, problem.y)

    step()
    return step


@dataclass
class CapturedStep:
    """Our m-SAM gradient by a recorded step, after the calls in which it is recorded.

    Attributes:
        problem: The problem.
        m: Examples that share one perturbation.
        capture: ``"replay"`` or ``"compile"``.
        seconds: What recording took, and compiling.
    """

    problem: Problem
    m: int
    capture: str = "replay"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.sam = SAM(self.problem.model, rho=RHO, m=self.m, engine="batched", capture=self.capture)
        captures = self.sam.captures
        assert captures is not None
        while captures.recorded == 0 and captures.run < 4:
            began = time.perf_counter()
            self()
            self.seconds = time.perf_counter() - began
        self()

    def __call__(self) -> object:
        """One step."""
        return self.sam.objective(self.problem.loss, self.problem.x, self.problem.y)

    @property
    def share(self) -> float:
        """Share of the chunks of groups that were replayed, after the two that every recording takes."""
        captures = self.sam.captures
        assert captures is not None
        return captures.replayed / (captures.replayed + captures.run - 2)

    def guarding(self, steps: int = 10) -> float:
        """Share of the time of a step that is spent on looking for changes."""
        from lowland.sam.captured.guard import Guard

        looking, spent = Guard.broken, []

        def timed(*arguments: object) -> object:
            began = time.perf_counter()
            found = looking(*arguments)
            spent.append(time.perf_counter() - began)
            return found

        Guard.broken = timed
        began = time.perf_counter()
        try:
            for _ in range(steps):
                self()
        finally:
            Guard.broken = looking
        return sum(spent) / (time.perf_counter() - began)


def recorded(problem: Problem, step: Step) -> Step:
    """Another step, recorded in the same way as ours."""
    from lowland.sam.captured.program import program
    from lowland.sam.captured.recording import record

    inputs = [problem.x, problem.y, *problem.params]
    found = record(lambda _: step(), inputs)
    replay = program(found.graph, found.constants)

    @torch.no_grad()
    def replayed() -> object:
        return replay(None, *inputs)

    return replayed


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers = [part for p, q in pairwise(widths) for part in (nn.Linear(p, q), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _resnet(name: str) -> Callable[[int], nn.Module]:
    return lambda width: build_model(name, num_classes=10, model_width=width)


class _Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside the identity."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norms[1](x))


class _VisionTransformer(nn.Module):
    """32 by 32 pixels in patches of 4, whose mean is classified."""

    def __init__(self, d: int, *, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, d, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(64, d))
        self.blocks = nn.Sequential(*[_Block(d, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class _Logits(nn.Module):
    """A model of transformers, without what it returns beside the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False, return_dict=True).logits


class _Bert(_Logits):
    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, return_dict=True).logits


def _bert(d: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=1000,
        hidden_size=d,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * d,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=10,
    )
    return _Bert(BertForSequenceClassification(config))


def _gpt2(d: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=5000, n_positions=64, n_embd=d, n_layer=4, n_head=8, **dropout, **ends)
    return _Logits(GPT2LMHeadModel(config))


_IMAGE = (3, 32, 32)
NETWORKS = {
    "tiny_mlp": Network("MLP 4-8-8-10", lambda width: mlp(4, width, width, 10), 8, 16, (4,)),
    "mlp": Network("MLP 784-1024-1024-10", lambda width: mlp(784, width, width, 10), 1024, 128, (784,)),
    "resnet_gn": Network("PreAct ResNet GN, width 16", _resnet("resnet_tiny_gn"), 16, 64, _IMAGE),
    "resnet18_gn": Network("PreAct ResNet-18 GN, width 64", _resnet("resnet18_gn"), 64, 16, _IMAGE),
    "resnet18_bn": Network("PreAct ResNet-18 BN, width 16", _resnet("resnet18"), 16, 64, _IMAGE),
    "vit": Network(
        "ViT d = 192, 4 blocks, T = 64",
        lambda d: _VisionTransformer(d, depth=4, heads=3),
        192,
        64,
        _IMAGE,
    ),
    "bert": Network("BERT d = 256, 4 layers, T = 128", _bert, 256, 32, (128,), tokens=1000),
    "wide_mlp": Network(
        "MLP 1000-2200-2200-1000",
        lambda width: mlp(1000, width, width, 1000),
        2200,
        8,
        (1000,),
        classes=1000,
    ),
    "gpt2": Network(
        "GPT-2 d = 512, 4 layers, T = 64",
        _gpt2,
        512,
        2,
        (64,),
        classes=5000,
        tokens=5000,
        every_position=True,
    ),
}
MANY_GROUPS = ["tiny_mlp", "mlp", "resnet_gn", "resnet18_gn", "resnet18_bn", "vit", "bert"]
"""Where m matters: forward and backward take the time."""
MANY_WEIGHTS = ["wide_mlp", "gpt2"]
"""Where parameters take the time, so that ordinary SAM gains too."""


def product_types() -> tuple[type[nn.Module], ...]:
    """Modules that are products with a matrix, those of transformers included where there are such."""
    found: list[type[nn.Module]] = [nn.Linear]
    with suppress(ImportError):
        from transformers.pytorch_utils import Conv1D

        found.append(Conv1D)
    return tuple(found)
