"""Whether ``lowland.sam.batched.cost`` forms the gradients of a group where that is cheaper.

    python benchmarks/kernels.py --networks mlp vit resnet_gn

For each product with a weight in the networks, and each m, the seconds of what a group's gradient costs in a
step, in both forms:

    low rank:  the ghost norm, scaling a factor, the corrected forward pass, the corrected input gradient
    formed:    forming it, its norm, scaling it, forward pass and input gradient with each group's weights

The shared products, one forward and one input gradient, are timed too, and given beside the two: what either
form takes beyond them is what m-SAM adds to ordinary SAM. A choice that costs more than 10 % over the other
form is marked. The low rank form is not timed, and shown as "–", where it would hold too much.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interleaved import measured
from lowland.sam.batched.cost import Costs, costs_of_convolution, costs_of_linear
from lowland.sam.batched.rules.convolution import Geometry, by_rows
from lowland.sam.vectors.factors import Factor, add_through, gram
from lowland.sam.vectors.patches import Patches
from networks import MANY_GROUPS, NETWORKS, available, product_types

LARGEST = 2**28
"""Elements of the largest tensor of the low rank form that is timed."""


@dataclass(frozen=True)
class Linear:
    """A product of ``rows`` of each example with a ``q x p`` matrix."""

    rows: int
    q: int
    p: int

    def __str__(self) -> str:
        return f"linear {self.p} → {self.q}, {self.rows} rows"

    def chosen(self, m: int, groups: int) -> str:  # noqa: ARG002 - as that of a convolution
        """The form that the library takes."""
        return _form(costs_of_linear(m * self.rows, self.q, self.p))

    def largest(self, examples: int, m: int) -> int:
        """Elements of the largest tensor of the low rank form."""
        return examples * self.rows * max(m * self.rows, self.p, self.q)

    def forms(self, examples: int, m: int, device: torch.device) -> dict[str, Callable[[], object]]:
        """What to time; the tensors are made here."""
        groups = examples // m
        x, a = (torch.randn(groups, m * self.rows, self.p, device=device) for _ in range(2))
        g, d = (torch.randn(groups, m * self.rows, self.q, device=device) for _ in range(2))
        w, c = torch.randn(self.q, self.p, device=device), torch.rand(groups, device=device)

        def shared() -> tuple[Tensor, Tensor]:
            return x @ w.t(), g @ w

        def low_rank() -> None:
            factor = Factor(d, a)
            gram(factor, factor)
            moved = factor.scaled(c)
            y, gx = shared()
            add_through(y, x, moved.right, moved.left)
            add_through(gx, g, moved.left, moved.right)

        def formed() -> None:
            moved = _moved(Factor(d, a).formed(), w, c)
            torch.bmm(x, moved.transpose(1, 2))
            torch.bmm(g, moved)

        return {"shared": shared, "low rank": low_rank, "formed": formed}


@dataclass(frozen=True)
class Convolution:
    """A convolution of images of ``size`` with filters of ``shape``."""

    size: tuple[int, ...]
    shape: tuple[int, ...]
    geometry: Geometry
    rows: int

    def __str__(self) -> str:
        q, p, k, _ = self.shape
        return f"convolution {k}×{k} {p} → {q}, {self.rows} positions, stride {self.geometry.stride[0]}"

    def chosen(self, m: int, groups: int) -> str:
        """The form that the library takes."""
        q, p, *window = self.shape
        return _form(costs_of_convolution(m * self.rows, m * self.points, q, p, window, groups))

    @property
    def points(self) -> int:
        """Positions of the input."""
        return torch.Size(self.size[1:]).numel()

    def largest(self, examples: int, m: int) -> int:
        """Elements of the largest tensor of the low rank form."""
        return examples * m * self.points**2

    def forms(self, examples: int, m: int, device: torch.device) -> dict[str, Callable[[], object]]:
        """What to time; the tensors are made here."""
        groups = examples // m
        x, a = (torch.randn(examples, *self.size, device=device) for _ in range(2))
        w, c = torch.randn(self.shape, device=device), torch.rand(groups, device=device)
        y = self.geometry.forward(x, w, None)
        g, d = torch.randn_like(y), torch.randn_like(y)
        shape_only = w.new_empty(groups * len(w), *w.shape[1:])

        def shared() -> tuple[Tensor, Tensor | None]:
            found, _ = self.geometry.backward(g, x, w, (True, False))
            return self.geometry.forward(x, w, None), found

        def low_rank() -> None:
            window = self.geometry.window(w)
            assert window is not None
            own, seen = (Patches(t.view(groups, m, *self.size), window) for t in (x, a))
            factor = Factor(by_rows(d.flatten(2), groups), seen)
            gram(factor, factor)
            left = factor.scaled(c).left
            shared()
            torch.bmm(own.pairs(seen), left)
            through = torch.bmm(by_rows(g.flatten(2), groups), left.transpose(1, 2))
            torch.bmm(own.spread(through, seen), seen.points())

        def formed() -> None:
            beside = _aside(a, groups)
            _, found = self.geometry.backward(_aside(d, groups), beside, shape_only, (False, True), groups)
            moved = _moved(found.view(groups, *self.shape), w, c).flatten(0, 1)
            beside = _aside(x, groups)
            _apart(self.geometry.forward(beside, moved, None, groups), groups)
            gx, _ = self.geometry.backward(_aside(g, groups), beside, moved, (True, False), groups)
            _apart(gx, groups)

        return {"shared": shared, "low rank": low_rank, "formed": formed}


def _form(costs: Costs) -> str:
    return "formed" if costs.forms else "low rank"


Kernel = Linear | Convolution


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=MANY_GROUPS)
    parser.add_argument("--m", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="examples, in place of each network's own")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print("| product | B | m | shared ms | low rank ms | formed ms | chosen | |")
    print("|---|---|---|---|---|---|---|---|")
    taken = []
    for kernel, examples in _kernels(arguments.networks, arguments.batch):
        for m in arguments.m:
            if examples % m == 0:
                taken.append(_row(kernel, examples, m, device, arguments.rounds))
    wrong = sum(found.wrong for found in taken)
    lost = sum(found.chosen - found.best for found in taken if found.wrong)
    best = sum(found.best for found in taken)
    print(
        f"\n{wrong} of {len(taken)} choices cost more than 10 % over the other form, {lost:.1f} ms together;"
    )
    print(f"the cheaper forms of all take {best:.1f} ms.")


@dataclass(frozen=True)
class Taken:
    """Milliseconds of the form that the library takes, and of the cheaper one."""

    chosen: float
    best: float

    @property
    def wrong(self) -> bool:
        """Whether the choice costs more than 10 % over the other form."""
        return self.chosen > 1.1 * self.best


def _row(kernel: Kernel, examples: int, m: int, device: torch.device, rounds: int) -> Taken:
    """Prints one row."""
    steps = kernel.forms(examples, m, device)
    if kernel.largest(examples, m) > LARGEST:
        del steps["low rank"]
    with torch.no_grad():
        took = {name: 1e3 * statistics.median(t) for name, t in measured(steps, rounds).items()}
    chosen = kernel.chosen(m, examples // m)
    forms = [took[name] for name in ("low rank", "formed") if name in took]
    found = Taken(took.get(chosen, float("inf")), min(forms))
    shown = [f"{took[name]:.2f}" if name in took else "–" for name in ("shared", "low rank", "formed")]
    mark = f"wrong: {found.chosen / found.best:.2f} ×" if found.wrong else ""
    print("| " + " | ".join([str(kernel), str(examples), str(m), *shown, chosen, mark]) + " |", flush=True)
    return found


def _kernels(names: list[str], batch: int | None) -> Iterator[tuple[Kernel, int]]:
    """The products in these networks, each once, and the number of examples."""
    seen = set()
    for _, problem in available(names, torch.device("cpu"), batch):
        for kernel in _used(problem.model, problem.x[:2]):
            if (kernel, len(problem.x)) not in seen:
                seen.add((kernel, len(problem.x)))
                yield kernel, len(problem.x)


def _used(model: nn.Module, x: Tensor) -> list[Kernel]:
    """The products that a forward pass makes."""
    found: list[Kernel] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        found.append(_kernel(module, inputs[0], y, len(x)))

    types = (nn.Conv2d, *product_types())
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, types)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def _kernel(module: nn.Module, x: Tensor, y: Tensor, examples: int) -> Kernel:
    if not isinstance(module, nn.Conv2d):
        return Linear(x.numel() // x.shape[-1] // examples, y.shape[-1], x.shape[-1])
    geometry = Geometry(module.stride, module.padding, module.dilation, False, (0, 0), module.groups)
    return Convolution(tuple(x.shape[1:]), tuple(module.weight.shape), geometry, y[0, 0].numel())


def _moved(gradient: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The weights of every group, in the memory of the gradients, whose norms are taken."""
    torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return gradient.mul_(c.view(-1, *[1] * w.dim())).add_(w)


def _aside(x: Tensor, groups: int) -> Tensor:
    """Groups side by side as channels."""
    return x.view(groups, -1, *x.shape[1:]).transpose(0, 1).reshape(len(x) // groups, -1, *x.shape[2:])


def _apart(y: Tensor, groups: int) -> Tensor:
    """Groups one after the other again."""
    return y.view(len(y), groups, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)


if __name__ == "__main__":
    main()
