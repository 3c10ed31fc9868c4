"""What a network makes of its inputs: the rank of features, active ReLUs, and how well features transfer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowland.errors import InputError
from lowland.sam.buffers import Buffers
from lowland.sam.reductions import Unreduced
from lowland.sam.surely import finally_surely
from lowland.sharpness.kept import generators_kept

_CHUNK = 1024


def features_at(
    module: nn.Module,
    layer: str,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    run: Callable[..., object] | None = None,
) -> Float[Tensor, "examples width"]:
    """The outputs of one layer, flattened, for all examples of the batches.

    Args:
        module: The network; run as it is, without gradients, and left as it was.
        layer: The layer's dotted name, as in ``named_modules``.
        batches: Inputs: a tensor each, or all arguments of the network.
        run: Runs the network on a batch's arguments; by default it is called with them.

    Raises:
        InputError: If there is no such layer, or it does not run.

    Example:
        >>> import torch
        >>> from lowland.sharpness import features_at
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> features_at(module, "1", [torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])])
        tensor([[1., 0., 2., 0.]])
    """
    layers = dict(module.named_modules())
    if layer not in layers:
        nearest = difflib.get_close_matches(layer, layers, n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise InputError(f"layer must be the name of one of the network's, got {layer!r}{hint}.")
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(output.detach().flatten(1))

    handle = layers[layer].register_forward_hook(keep)
    draws = generators_kept(module.parameters())
    with (
        finally_surely(handle.remove),
        draws,
        Buffers(module, reductions=Unreduced()).kept(),
        torch.no_grad(),
    ):
        for batch in batches:
            (run or module)(*([batch] if isinstance(batch, Tensor) else batch))
    if not found:
        raise InputError(f"layer must be one that runs, got {layer!r}, which did not.")
    return torch.cat(found)


def feature_rank(features: Float[Tensor, "examples ..."], *, variance: float = 0.99) -> int:
    """Number of principal components that explain a share of the variance.

    The measure of Andriushchenko et al. (2023, "Sharpness-aware minimization leads to low-rank features",
    section 3): features are flattened and centred.

    Args:
        features: One row per example.
        variance: The share.

    Returns:
        That number; 0 if all features are the same.

    Raises:
        InputError: If the share is not in (0, 1] or there are fewer than two examples.

    Example:
        >>> import torch
        >>> from lowland.sharpness import feature_rank
        >>> feature_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.05], [0.0, -0.05]]))
        1
    """
    if not 0.0 < variance <= 1.0:
        raise InputError(f"variance must be in (0, 1], got {variance}.")
    rows = features.detach().flatten(1).double()
    if len(rows) < 2:
        raise InputError(f"features must be those of at least two examples, got {len(rows)}.")
    rows = rows - rows.mean(0)
    gram = rows @ rows.t() if len(rows) < rows.shape[1] else rows.t() @ rows
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0.0)
    if values[0] == 0.0:
        return 0
    values = values[values > 1e-12 * values[0]]
    shares = values.cumsum(0) / values.sum()
    return int((shares < variance - 1e-12).sum()) + 1


@dataclass
class ActiveReLUs(TorchFunctionMode):
    """Counts positive outputs of every ReLU that runs inside the block, as a module or as a function.

    Attributes:
        positive: Positive outputs so far.
        outputs: All outputs so far.

    Example:
        >>> import torch
        >>> from lowland.sharpness import ActiveReLUs
        >>> with ActiveReLUs() as counted:
        ...     _ = torch.relu(torch.tensor([-1.0, 2.0, 3.0, -4.0]))
        >>> counted.fraction
        0.5
    """

    positive: int = 0
    outputs: int = 0
    _relus: tuple[Any, ...] = field(
        default=(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6), repr=False
    )

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def fraction(self) -> float:
        """Share of positive outputs; NaN if no ReLU ran."""
        return self.positive / self.outputs if self.outputs else float("nan")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs every function as it is, and looks at what ReLUs return."""
        found = func(*args, **(kwargs or {}))
        if func in self._relus:
            self.positive += int((found > 0).sum())
            self.outputs += found.numel()
        return found


def knn_error(
    train: tuple[Float[Tensor, "train width"], Int[Tensor, " train"]],
    test: tuple[Float[Tensor, "test width"], Int[Tensor, " test"]],
    *,
    k: int = 10,
) -> float:
    """Error of a vote among the ``k`` nearest training features, in l2 distance.

    With features of a network that was trained on other data it tells how well they transfer. The smaller
    label wins where a vote is tied.

    Args:
        train: Features and labels that are voted with.
        test: Features and labels that are predicted.
        k: Number of votes.

    Returns:
        The share of test examples whose vote is wrong.

    Raises:
        InputError: If there are fewer than ``k`` training examples, or no test example.

    Example:
        >>> import torch
        >>> from lowland.sharpness import knn_error
        >>> train = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1])
        >>> test = torch.tensor([[0.4], [10.6], [9.0], [2.0]]), torch.tensor([0, 1, 1, 1])
        >>> knn_error(train, test, k=1)  # the last one's neighbour has the label 0
        0.25
    """
    (features, labels), (queries, wanted) = train, test
    if not 1 <= k <= len(features):
        raise InputError(f"k must be from 1 to the {len(features)} training examples, got {k}.")
    if len(queries) == 0:
        raise InputError("test must hold at least one example, got none.")
    classes = int(labels.max()) + 1
    wrong = 0
    unit = _unit(features, queries)
    features = features / unit
    for rows, right in zip(torch.split(queries, _CHUNK), torch.split(wanted, _CHUNK), strict=True):
        near = torch.cdist(rows / unit, features).topk(k, largest=False).indices
        votes = F.one_hot(labels[near].long(), classes).sum(1)
        wrong += int((votes.argmax(1) != right).sum())
    return wrong / len(queries)


def _unit(*features: Tensor) -> float:
    """A power of two that the largest feature is near, in units of which squares of distances are numbers."""
    largest = max(t.abs().max().item() for t in features)
    return 2.0 ** math.frexp(largest)[1] if 0.0 < largest < math.inf else 1.0
