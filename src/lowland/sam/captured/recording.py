"""A step as a flat graph of tensor operations.

``make_fx`` makes the same graph, but describes every value to a compiler, which takes a hundred times as long
as to note down the operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from lowland.sam.asked import noted
from lowland.sam.batched.outside import tensors_in
from lowland.sam.captured.memory import memory_of, written_by
from lowland.sam.captured.unrecordable import Unrecordable
from lowland.sam.kept import kept_tensors
from lowland.sam.looks.world import World
from lowland.sam.modes import OwnMode
from lowland.sam.objective import Objective
from lowland.sam.place import place_of

_aten = torch.ops.aten


def again() -> None:
    """Marks where a pass begins, and the draws with it."""


def stays() -> None:
    """Marks where the generators stand as they are left."""


@dataclass(frozen=True)
class Recording:
    """What a function of tensors did with them.

    Attributes:
        graph: Its operations: placeholders for the inputs, ``get_attr`` for constants; at the end what it
            returned, and whether the host would have been answered otherwise than it was.
        constants: The tensors from outside that it met, by the names that the graph has for them.
        literals: Names of those that it made itself of numbers.
        returned: What it returned when it was recorded.
        written: Constants that it writes to, which are as they were before it ran.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    literals: set[str]
    returned: list[Tensor]
    written: list[Tensor]

    @property
    def operations(self) -> list[fx.Node]:
        """The nodes that compute something."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    @property
    def draws(self) -> bool:
        """Whether it draws from torch's generators."""
        tag = torch.Tag.nondeterministic_seeded
        return any(tag in getattr(node.target, "tags", ()) for node in self.operations)


def record(function: Callable[[Recorder], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Recording:
    """Runs a function of the tensors ``inputs``, which it holds itself, and records what it does with them.

    Every other tensor that it meets becomes a constant, by reference.

    Raises:
        Unrecordable: If the host reads numbers from tensors, or a tensor comes from where nothing is seen.
    """
    recorder = Recorder(inputs)
    try:
        with _Reads(recorder), recorder, noted(recorder.answer):
            returned = list(function(recorder))
            flag = recorder.flag()
    finally:
        recorder.put_back()
    if recorder.refused is not None:
        raise recorder.refused
    recorder.graph.output([*map(recorder.node, returned), recorder.node(flag)])
    return Recording(recorder.graph, recorder.constants, recorder.literals, returned, recorder.written())


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes down what torch is asked to compute, below autograd and ``vmap``.

    Args:
        inputs: Tensors that become arguments.

    Attributes:
        graph: The operations.
        constants: The tensors from outside.
        literals: Names of those that were made of numbers.
        refused: Why the step cannot be recorded, also where the loss has caught that.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.literals: set[str] = set()
        self.refused: Unrecordable | None = None
        self._nodes: Any = WeakIdKeyDictionary()
        self._places: set[int] = set()
        self._questions: list[Tensor] = []
        self._silent = False
        self._before: dict[str, Callable[[], None]] = {}
        for i, t in enumerate(inputs):
            self._note(t, self.graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent or func.namespace == "profiler":
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            with self:  # a branch, which a replay asks for as well
                return self.answer(args[0].reshape(1))[0]
        if func in _READS:
            self.refuse_reading()
        if func is _aten.lift_fresh.default:
            self.literals.add(self._constant(args[0], literal=True).name)
            func = _aten.lift_fresh_copy.default  # nobody is to write to the constant
        node = self.graph.call_function(func, *fx.node.map_aggregate((args, kwargs), self._given))
        for memory in map(memory_of, written_by(node)):
            if memory.op == "get_attr" and memory.name not in self._before:
                self._silent = True
                self._before[memory.name] = kept_tensors([self.constants[memory.name]])
                self._silent = False
        places = {place_of(t): self.node(t) for t in tensors_in((args, kwargs))}
        if torch.Tag.dynamic_output_shape in func.tags:
            self._ask_shape(func, [*tensors_in((args, kwargs))])
        try:
            found = func(*args, **kwargs)
        except BaseException:  # a loss may go on without it
            self.graph.erase_node(node)
            raise
        self._take(found, node, places)
        return found

    def _ask_shape(self, func: Any, given: list[Tensor]) -> None:
        """Has the replay ask what the shape of a result depends on: which elements are chosen."""
        masks = [t for t in given if t.dtype == torch.bool]
        if not masks and func.overloadpacket not in (_aten.index, _aten.index_put, _aten.index_put_):
            self.refuse_reading()
        with self:
            for mask in masks:
                self.answer(mask.reshape(-1))

    def refuse_reading(self) -> None:
        """Refuses a loss that makes numbers of Python's of tensors, unless it is the recorder that does.

        Raises:
            Unrecordable: Always but then.
        """
        if not self._silent:
            self.refused = Unrecordable("a number that is read from a tensor")
            raise self.refused

    def put_back(self) -> None:
        """Gives the constants that were written to what they held."""
        for put_back in self._before.values():
            put_back()

    def written(self) -> list[Tensor]:
        """The constants that were written to."""
        return [self.constants[name] for name in self._before]

    def mark(self, function: Callable[[], None]) -> None:
        """Notes down where the recording is."""
        self.graph.call_function(function, ())

    def answer(self, conditions: Tensor) -> list[bool]:
        """What the host is told, and from then on is always to be told."""
        self._silent = True
        try:
            answers: list[bool] = conditions.tolist()
        finally:
            self._silent = False
        if all(answers):
            self._questions.append(conditions.logical_not())
        elif any(answers):
            self._questions.append(conditions != torch.tensor(answers, device=conditions.device))
        else:
            self._questions.append(conditions)
        return answers

    def flag(self) -> Tensor:
        """Whether some question would be answered otherwise."""
        if not self._questions:
            return torch.zeros((), dtype=torch.bool, device="cpu")
        device = self._questions[0].device
        return torch.cat([t.to(device) for t in self._questions]).any()

    def node(self, tensor: Tensor) -> fx.Node:
        """What stands for a tensor."""
        found: fx.Node | None = self._nodes.get(tensor)
        return self._constant(tensor) if found is None else found

    def _given(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, Tensor) else value

    def _take(self, found: Any, node: fx.Node, places: dict[int, fx.Node]) -> None:
        """Takes what an operation returned: a tensor, or several, in new memory or in that of an argument."""
        if isinstance(found, Tensor):
            self._note(found, node, places)
        elif isinstance(found, (list, tuple)):
            for i, each in enumerate(found):
                if isinstance(each, Tensor):
                    self._note(each, self.graph.call_function(operator.getitem, (node, i)), places)

    def _note(self, tensor: Tensor, node: fx.Node, places: dict[int, fx.Node] | None = None) -> None:
        _describe(node, tensor)
        self._nodes[tensor] = node
        place = place_of(tensor)
        if tensor.numel():
            self._places.add(place)
        if places is not None and place in places:
            node.meta["of"] = places[place]

    def _constant(self, tensor: Tensor, *, literal: bool = False) -> fx.Node:
        if not literal and tensor.numel() and place_of(tensor) in self._places:
            self.refused = Unrecordable("a tensor by another name, such as its .data")
            raise self.refused
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        node = self.graph.create_node("get_attr", name, name=name)
        _describe(node, tensor)
        self._nodes[tensor] = node
        return node


class _Reads(OwnMode):
    """Sees what no operation is: a tensor as a list, or as an array of NumPy."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _AS_PYTHON:
            self._recorder.refuse_reading()
        return func(*args, **(kwargs or {}))


class RecordedWorld(World):
    """A world whose passes are marked in the graph that is being recorded.

    Args:
        objective: What is passed over.
        recorder: What records it.
    """

    def __init__(self, objective: Objective, recorder: Recorder) -> None:
        super().__init__(objective)
        self._recorder = recorder

    def again(self) -> None:
        """Begins a pass."""
        super().again()
        self._recorder.mark(again)

    def stays(self) -> None:
        """Says that what the generators were left at is to stay."""
        super().stays()
        self._recorder.mark(stays)


def _describe(node: fx.Node, tensor: Tensor) -> None:
    node.meta["layout"] = tensor.shape, tensor.stride(), tensor.dtype, tensor.device


_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}
"""Operations whose results are the host's."""

_AS_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
