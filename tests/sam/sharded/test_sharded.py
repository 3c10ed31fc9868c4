"""m-SAM of models that ``fully_shard`` has cut: two gloo processes against one that computes both shares.

This file is also the script that each process runs.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lowland import SAM, Unnormalized, presets, sam_gradient
from lowland.sam import ClippedUnnormalized, Unified, examples_scale, weights_are_perturbed

from ..naive import added, naive_sam, regression, relative_error, seeded, squared, value_and_gradient
from ..processes import WORLD, attempt, found_by_ranks, work
from .models import (
    adapted,
    collectives,
    gathered_bytes,
    gpt,
    images,
    likelihood,
    normalized,
    sentences,
    sharded,
    shards,
    uneven,
    whole,
)

TOL = 1e-12
RHO = 0.3


@dataclass(frozen=True)
class Case:
    """A model, its loss and its batches, and what is asked for: of SAM, of the formula, of FSDP."""

    make: object = uneven
    loss: object = squared
    data: object = regression
    sam: dict = field(default_factory=dict)
    naive: dict | None = None
    shard: dict = field(default_factory=dict)
    together: bool = False
    tol: float = TOL

    def batch(self, rank):
        return self.data(10 + rank)

    def options(self, mesh=None):
        return {"rho": RHO, **self.sam, **({"process_group": mesh.get_group()} if self.together else {})}

    def run(self, mesh):
        """The gradient, the loss and what became of the shards of a rank's process."""
        model = sharded(self.make(), mesh, **self.shard)
        before, batch = shards(model), self.batch(dist.get_rank())
        torch.manual_seed(dist.get_rank())
        sam = SAM(model, **self.options(mesh))
        value = sam.backward(partial(self.loss, model), *batch)
        seen = sam.last_diagnostics
        return {
            "grads": whole(model, gradients=True),
            "loss": value,
            "same": all(map(torch.equal, shards(model), before)),
            "buffers": [b.clone() for b in model.buffers()],
            "draw": torch.rand(3),
            "seen": None if seen is None else {**vars(seen)},
        }

    def by_itself(self, rank):
        """The same by a process that has the model whole."""
        model = self.make()
        torch.manual_seed(rank)
        sam = SAM(model, **self.options())
        value = sam.backward(partial(self.loss, model), *self.batch(rank))
        seen = sam.last_diagnostics
        return {
            "grads": [p.grad for p in model.parameters()],
            "loss": value,
            "buffers": [*model.buffers()],
            "draw": torch.rand(3),
            "seen": None if seen is None else {**vars(seen)},
        }

    def by_formula(self):
        """What the formula says: the mean over ranks, or one batch of all."""
        options, model = {"rho": RHO, **self.naive}, self.make()
        if self.together:
            return naive_sam(model, self.loss, joined(self, options.get("m")), **options).gradients
        found = [naive_sam(model, self.loss, self.batch(rank), **options).gradients for rank in range(WORLD)]
        return [g / WORLD for g in added(*found)]


def joined(case, m):
    """The batch whose groups of ``m`` are made of the i-th groups of all ranks."""
    own = [case.batch(rank) for rank in range(WORLD)]
    m = len(own[0][0]) if m is None else m // WORLD
    parts = [tuple(t[i : i + m] for t in batch) for i in range(0, len(own[0][0]), m) for batch in own]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def of(m, **options):
    """The same for SAM and for the formula."""
    return {"sam": {"m": m, **options}, "naive": {"m": m, **options}}


def other_sizes(seed):
    """Seven examples of rank 0, four of rank 1."""
    return tuple(t[: 7 - 3 * (seed - 10)] for t in regression(seed))


def of_other_sizes(data):
    """The same of any data: with m = 4 rank 0 has groups of two shapes, rank 1 of one."""
    return lambda seed: tuple(t[: 7 - 3 * (seed - 10)] for t in data(seed, examples=7))


def first_is_spoilt(seed):
    """Groups of m = 4 of two shapes of rank 0, of one shape of rank 1, whose first group is not a number."""
    x, y = regression(seed, examples=seed - 3)
    if seed == 11:
        x[0] = float("nan")
    return x, y


def in_sixes(module, x, y):
    """The mean over what each rank has: with batch norm the examples of a rank belong together."""
    losses = [squared(module, *six) for six in zip(x.split(6), y.split(6), strict=True)]
    return sum(losses) / len(losses)


def language(**options):
    return {"make": lambda: gpt(**options), "loss": likelihood, "data": sentences}


MODELS = {"uneven": {}, "gpt": language(), "tied": language(tied=True)}
SHARDS = {"freed": {}, "kept": {"reshard_after_forward": False}}

BY_FORMULA = {
    f"{name}, {how}, m={m}": Case(**model, shard=shard, **of(m))
    for (name, model), (how, shard), m in product(MODELS.items(), SHARDS.items(), (None, 1, 2, 3))
}
BY_FORMULA |= {
    f"{name}, {how}, together, m={m}": Case(**model, shard=shard, **of(m), together=True)
    for (name, model), (how, shard), m in product(MODELS.items(), SHARDS.items(), (None, 4))
}
BY_FORMULA |= {
    f"{what}, {'together, ' * together}m={m}": Case(**case, **of(m, **options), together=together)
    for what, (case, options) in {
        "l2": ({}, {"l2": 0.1}),
        "l2, gpt": (language(tied=True), {"l2": 0.1}),
        "two steps": ({}, {"steps": 2, "step_size": 0.7}),
        "two steps, l2": ({}, {"steps": 2, "step_size": 0.7, "l2": 0.1}),
        "recomputes": (language(recomputes=True), {}),
    }.items()
    for together, m in ((False, None), (False, 3), (True, 4))
}
BY_FORMULA |= {
    f"{name}, {'together, ' * together}m={m}": Case(
        sam={"m": m, "ascent": ascent}, naive={"m": m, "ascent": word}, together=together
    )
    for (name, ascent, word) in (
        ("unnormalized", Unnormalized(), "unnormalized"),
        ("clipped", ClippedUnnormalized(), "clipped"),
        ("unified", Unified(lam=1.0), "l2"),
    )
    for together, m in ((False, 3), (True, 4))
}
BY_FORMULA |= {
    "other sizes, m=None": Case(data=other_sizes, **of(None)),
    "other sizes, m=2": Case(data=other_sizes, **of(2)),
    "other sizes, m=4": Case(data=other_sizes, **of(4)),
    "other sizes, l2, m=2": Case(data=other_sizes, **of(2, l2=0.1)),
    "batch norm, m=3": Case(normalized, data=images, **of(3)),
    "batch norm, m=None": Case(normalized, data=images, **of(None)),
    "batch norm, together": Case(normalized, in_sixes, images, **of(None), together=True),
    "no radius": Case(sam={"m": 2, "rho": 0.0}, naive={"m": 2, "rho": 0.0}),
    "no radius, l2": Case(sam={"m": 2, "rho": 0.0, "l2": 0.1}, naive={"m": 2, "rho": 0.0, "l2": 0.1}),
    "diagnostics, l2": Case(**{**of(3, l2=0.1), "sam": {"m": 3, "l2": 0.1, "diagnostics": True}}),
}

BY_ITSELF = {
    "dropout": Case(**language(dropout=0.4), sam={"m": 2, "engine": "batched"}),
    "dropout, m=None": Case(**language(dropout=0.4), sam={"engine": "batched"}),
    "dropout, recomputes": Case(**language(dropout=0.4, recomputes=True), sam={"m": 2, "engine": "batched"}),
    "adapters": Case(adapted, sam={"m": 2}),
    "some are perturbed": Case(sam={"m": 2, "perturb": "2.*"}),
    "some are perturbed, l2": Case(sam={"m": 2, "perturb": "2.*", "l2": 0.1}),
    "batch norm": Case(normalized, data=images, sam={"m": 2}),
    "batch norm, other sizes": Case(normalized, data=of_other_sizes(images), sam={"m": 4}),
    "dropout, other sizes": Case(
        **{**language(dropout=0.4), "data": of_other_sizes(sentences)}, sam={"m": 4, "engine": "batched"}
    ),
    "batch norm, frozen": Case(normalized, data=images, sam={"m": 2, "bn_stats": "frozen"}),
    "sum": Case(loss=lambda *b: 7.0 * squared(*b), sam={"m": 7, "reduction": "sum"}),
    "weights": Case(sam={"m": 2, "weight": lambda x, _: float(x.abs().sum())}),
    "weights, other sizes": Case(
        data=first_is_spoilt, sam={"m": 4, "weight": lambda x, _: len(x) * float(x.isfinite().all())}
    ),
    "diagnostics": Case(sam={"m": 2, "diagnostics": True}),
    "diagnostics, l2": Case(sam={"m": 2, "diagnostics": True, "l2": 0.1}),
    "diagnostics, ragged": Case(sam={"m": 3, "diagnostics": True}),
}


def scenarios(rank):
    mesh = init_device_mesh("cpu", (WORLD,))
    for name, case in {**BY_FORMULA, **{f"by itself: {n}": c for n, c in BY_ITSELF.items()}}.items():
        yield name, case.run(mesh)
    for name, other in OTHERS.items():
        yield name, other(mesh, rank)


def stepped(model, batch, sam):
    """A step, plain without a SAM."""
    loss = partial(likelihood, model)
    loss(*batch).backward() if sam is None else sam.backward(loss, *batch)


def plain_and_ours(mesh, rank):
    """Collectives, bytes and what is gathered at once in a step, plain and of each kind of ours."""
    found = {}
    for how, shard in SHARDS.items():
        model = sharded(gpt(), mesh, **shard)
        step = partial(stepped, model, sentences(rank))
        kinds = {f"m={m}": partial(step, SAM(model, rho=RHO, m=m)) for m in (None, 1, 2, 3, 6, 4)}
        kinds["l2"] = partial(step, SAM(model, rho=RHO, m=2, l2=0.1))
        kinds["plain"] = partial(step, None)
        kinds["together"] = partial(step, SAM(model, rho=RHO, process_group=mesh.get_group()))
        for name, step in kinds.items():
            model.zero_grad()
            step()
            model.zero_grad()
            with collectives(model) as seen:
                step()
            found[f"{how}, {name}"] = dict(seen.calls), dict(seen.size), seen.most_gathered
        found[f"{how}, whole"] = gathered_bytes(model, all_units=True)
    return found


def accumulated(mesh, rank):
    """Two calls, of which the first waits for the second or does not, onto a gradient that is there."""
    found = {}
    for name, waits, together in (
        *(("each reduces", False, False), ("first waits", True, False), ("together", False, True)),
        ("together, is told to wait", True, True),
    ):
        model = sharded(uneven(), mesh)
        group = mesh.get_group() if together else None
        sam = SAM(model, rho=RHO, m=2 if together else 3, process_group=group)
        model.set_requires_gradient_sync(not waits)
        batches = regression(rank), regression(5 + rank)
        with collectives(model) as seen:
            sam.backward(partial(squared, model), *batches[0], scale=0.5)
        model.set_requires_gradient_sync(True)
        first = dict(seen.calls)
        sam.backward(partial(squared, model), *batches[1], scale=0.5)
        found[name] = whole(model, gradients=True), first, sam.steps_done
    return found


def fails(mesh, rank):
    """A loss that raises in the first pass, or in the second, everywhere: as if there had been no call."""
    found = {}
    for together, at, waits in product((False, True), (1, 2), (False, True)):
        model, calls = sharded(gpt(), mesh), []
        group = mesh.get_group() if together else None
        sam = SAM(model, rho=RHO, m=None, process_group=group)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before, grads = shards(model), [p.grad for p in model.parameters()]
        pending = waits and not together
        if pending:
            model.set_requires_gradient_sync(False)
            likelihood(model, *sentences(rank)).backward()
            model.set_requires_gradient_sync(True)

        def loss(x, y, model=model, calls=calls, at=at):
            calls.append(None)
            h = likelihood(model, x, y)
            if len(calls) == at:
                raise ZeroDivisionError("as it happens")
            return h

        with pytest.raises(ZeroDivisionError):
            sam.backward(loss, *sentences(rank))
        kept = [
            p.grad is g and bool((g.to_local() == 1.0).all())
            for p, g in zip(model.parameters(), grads, strict=True)
        ]
        same = all(map(torch.equal, shards(model), before)) and all(kept) and sam.steps_done == 0
        calls.extend([None, None])
        if not pending:
            model.zero_grad()
        sam.backward(loss, *sentences(rank))
        found[f"together {together}, pass {at}, pending {pending}"] = same, whole(model, gradients=True)
    return found


def ends(mesh, rank):
    """Gradients that are zero, or not finite, on one rank."""
    found = {}
    for what, together in product(("zero", "nan", "inf"), (False, True)):
        model, (x, y) = sharded(uneven(), mesh), regression(rank)
        if rank == 1:
            if what == "zero":
                y = uneven()(x).detach()
            else:
                x[0, 0] = float(what)
        group = mesh.get_group() if together else None
        before = shards(model)
        SAM(model, rho=RHO, m=None if together else 2, process_group=group).backward(
            partial(squared, model), x, y
        )
        same = all(map(torch.equal, shards(model), before))
        found[f"{what}, {together}"] = same, whole(model, gradients=True)
    return found


def as_a_loss(mesh, rank):
    """``objective`` and ``sam_gradient``, hooks, and a model that was run without gradients before."""
    model, batch = sharded(uneven(), mesh), regression(10 + rank)
    fired = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: fired.append(p.grad is not None))
    sam, seen = SAM(model, rho=RHO, m=2), []

    def loss(x, y):
        seen.append((weights_are_perturbed(model), weights_are_perturbed()))
        return squared(model, x, y)

    with torch.no_grad():
        model(batch[0])  # which leaves the root gathered
    value = sam.objective(loss, *batch)
    before = [p.grad is None for p in model.parameters()], len(fired)
    (2.0 * value).backward()
    found = sam_gradient(loss, [*model.parameters()], batch, rho=RHO, m=2, module=model)
    return {
        "objective": [g / 2.0 for g in whole(model, gradients=True)],
        "before": before,
        "fired": len(fired),
        "function": [g.full_tensor() for g in found.gradients],
        "seen": seen,
        "types": [type(g).__name__ for g in found.gradients],
    }


def in_half(mesh, rank):
    """Parameters in bfloat16 for the passes, gradients reduced in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    for name, m, together in (("m=2", 2, False), ("m=None", None, False), ("together", None, True)):
        model = sharded(gpt().float(), mesh, mp_policy=policy)
        before, group = shards(model), mesh.get_group() if together else None
        SAM(model, rho=RHO, m=m, process_group=group).backward(
            partial(likelihood, model), *sentences(10 + rank)
        )
        same = all(map(torch.equal, shards(model), before))
        found[name] = same, whole(model, gradients=True)
    return found


def uneven_together(mesh, rank):
    """A climb of ranks whose batches differ in size."""
    found = {}
    for name, scale in (("equal ranks", False), ("equal examples", True)):
        model, batch = sharded(uneven(), mesh), other_sizes(10 + rank)
        factor = examples_scale(len(batch[0])) if scale else 1.0
        SAM(model, rho=RHO, process_group=mesh.get_group()).backward(
            partial(squared, model), *batch, scale=factor
        )
        found[name] = whole(model, gradients=True)
    return found


def presets_of_the_ball(mesh, rank):
    """Presets whose ascents do not read the weights."""
    found = {}
    for name in ("sam", "usam", "unified_sam"):
        model = sharded(uneven(), mesh)
        getattr(presets, name)(model, rho=0.1, m=2).backward(partial(squared, model), *regression(10 + rank))
        found[name] = whole(model, gradients=True)
    return found


def without_weight(mesh, rank):
    """Groups of which none counts on one rank."""
    model = sharded(uneven(), mesh)
    sam = SAM(model, rho=RHO, weight=lambda *_: 1.0 - rank)
    return attempt(lambda: float(sam.backward(partial(squared, model), *regression(rank)))), shards(model)


class Twice(torch.nn.Module):
    """Two layers in one unit, used twice, in a unit of their own, and no unit for the whole."""

    def __init__(self):
        super().__init__()
        self.body, self.last = uneven(), uneven(1)

    def forward(self, x):
        h = self.body(x)
        return self.last(torch.cat([h, h[..., :1]], -1)) + self.body(-x)


def other_units(mesh, rank):
    """Units of two layers, in one another, none for the whole, each run twice; SAM was made before."""
    found = {}
    for how in ("two in one", "one in the other", "no root"):
        model = seeded(Twice())
        sam = SAM(model, rho=RHO, m=2)
        if how == "two in one":
            fully_shard([model.body[0], model.body[2]], mesh=mesh)
        elif how == "one in the other":
            fully_shard(model.body[2], mesh=mesh)
        fully_shard(model.body, mesh=mesh)
        fully_shard(model.last, mesh=mesh)
        if how != "no root":
            fully_shard(model, mesh=mesh)
        before = shards(model)
        sam.backward(partial(squared, model), *regression(10 + rank))
        same = all(map(torch.equal, shards(model), before))
        found[how] = same, whole(model, gradients=True)
    return found


def alone(mesh, rank):
    """A group of each rank by itself, which is not that of the mesh."""
    groups = [dist.new_group([r]) for r in range(WORLD)]
    sam = SAM(sharded(uneven(), mesh), rho=RHO, process_group=groups[rank])
    return attempt(lambda: sam.backward(partial(squared, sam.module), *regression()))


OTHERS = {
    f.__name__: f
    for f in (
        *(plain_and_ours, accumulated, fails, ends, as_a_loss, in_half, uneven_together),
        *(presets_of_the_ball, other_units, without_weight, alone),
    )
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    return found_by_ranks("tests.sam.sharded.test_sharded", tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("name", BY_FORMULA)
def test_gradient_is_that_of_the_formula_and_no_shard_has_changed(ranks, name):
    case = BY_FORMULA[name]
    expected = case.by_formula()
    for found in ranks:
        assert found[name]["same"]
        assert relative_error(found[name]["grads"], expected) < case.tol


@pytest.mark.parametrize("name", BY_ITSELF)
def test_rank_finds_what_a_process_with_the_whole_model_finds(ranks, name):
    each = [BY_ITSELF[name].by_itself(rank) for rank in range(WORLD)]
    expected = [
        None if a is None else (a + b) / WORLD for a, b in zip(*(own["grads"] for own in each), strict=True)
    ]
    for found, own in zip(ranks, each, strict=True):
        result = found[f"by itself: {name}"]
        assert result["same"]
        assert [g is None for g in result["grads"]] == [g is None for g in expected]
        there = [(a, b) for a, b in zip(result["grads"], expected, strict=True) if b is not None]
        assert relative_error(*zip(*there, strict=True)) < TOL
        torch.testing.assert_close(result["loss"], own["loss"], rtol=1e-12, atol=0.0)
        torch.testing.assert_close(result["buffers"], own["buffers"])
        assert torch.equal(result["draw"], own["draw"])
        if own["seen"] is not None:
            torch.testing.assert_close(result["seen"], own["seen"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", SHARDS)
def test_a_step_takes_twice_the_gathering_of_a_plain_one_and_its_reduction_once(ranks, how):
    for found in ranks:
        seen = found["plain_and_ours"]
        plain, bytes_of_plain, _ = seen[f"{how}, plain"]
        once = 5 if how == "freed" else 3
        assert plain == {"all_gather_single": once, "reduce_scatter_single": 3}
        for m, asks in ((None, 0), (1, 1), (2, 1), (3, 1), (6, 1)):
            calls, size, _ = seen[f"{how}, m={m}"]
            asked = {"all_reduce": 1} if asks else {}
            assert calls == {"all_gather_single": 2 * once, "reduce_scatter_single": 3, **asked}
            assert size.get("all_reduce", 0) == 8 * asks
            assert size["reduce_scatter_single"] == bytes_of_plain["reduce_scatter_single"]
            assert size["all_gather_single"] == 2 * bytes_of_plain["all_gather_single"]
        ragged, *_ = seen[f"{how}, m=4"]
        assert ragged == {"all_gather_single": 4 * once, "reduce_scatter_single": 6, "all_reduce": 1}
        with_l2, *_ = seen[f"{how}, l2"]
        assert with_l2 == {"all_gather_single": 2 * once + 6, "reduce_scatter_single": 3, "all_reduce": 2}
        together, *_ = seen[f"{how}, together"]
        assert together == {"all_gather_single": 2 * once, "reduce_scatter_single": 6, "all_reduce": 2}


def test_no_more_of_the_model_is_gathered_at_once_than_in_plain_training(ranks):
    for found in ranks:
        seen = found["plain_and_ours"]
        for how, name in product(SHARDS, ("m=None", "m=1", "m=2", "m=3", "m=4", "m=6", "together")):
            assert seen[f"{how}, {name}"][2] <= seen[f"{how}, plain"][2]
        assert seen["freed, plain"][2] < seen["freed, whole"]


def test_gradients_accumulate_and_wait_if_fsdp_is_told_so(ranks):
    calls = [regression(0), regression(1)], [regression(5), regression(6)]
    own = [naive_sam(uneven(), squared, b, rho=RHO, m=3).gradients for b in (*calls[0], *calls[1])]
    apart = [sum(g) / 4.0 for g in zip(*own, strict=True)]
    each = [[t[i : i + 1] for t in b] for first in calls for i in range(7) for b in first]
    pairs = [tuple(torch.cat(t) for t in zip(*each[i : i + 2], strict=True)) for i in range(0, len(each), 2)]
    own = [naive_sam(uneven(), squared, pair, rho=RHO).gradients for pair in pairs]
    all_together = [sum(g) / 14.0 for g in zip(*own, strict=True)]
    for found in ranks:
        for name, (grads, first, steps) in found["accumulated"].items():
            together = name.startswith("together")
            assert relative_error(grads, all_together if together else apart) < TOL, name
            assert ("reduce_scatter_single" in first) is (name != "first waits")
            assert steps == 1, name


def test_after_an_exception_all_is_as_before_the_call(ranks):
    batches = [sentences(rank) for rank in range(WORLD)]
    own = [naive_sam(gpt(), likelihood, batch, rho=RHO).gradients for batch in batches]
    plain = [naive_sam(gpt(), likelihood, batch, rho=0.0).gradients for batch in batches]
    both = tuple(map(torch.cat, zip(*batches, strict=True)))
    together = naive_sam(gpt(), likelihood, both, rho=RHO).gradients
    apart = [(a + b) / 2.0 for a, b in zip(*own, strict=True)]
    waiting = [1.0 + (a + b + c + d) / 2.0 for a, b, c, d in zip(*own, *plain, strict=True)]
    for found in ranks:
        for name, (same, grads) in found["fails"].items():
            expected = together if "together True" in name else waiting if "pending True" in name else apart
            assert same, name
            assert relative_error(grads, expected) < TOL, name


def test_gradient_that_is_zero_or_not_finite_on_one_rank_holds_nobody_up(ranks):
    batch = regression(0)
    first = naive_sam(uneven(), squared, batch, rho=RHO, m=2).gradients
    _, g = value_and_gradient(uneven(), squared, batch, [p.detach() for p in uneven().parameters()])
    for found in ranks:
        assert all(same for same, _ in found["ends"].values())
        assert relative_error(found["ends"]["zero, False"][1], [g / 2.0 for g in first]) < TOL
        assert all(bool(g.isfinite().all()) for g in found["ends"]["zero, True"][1])
        for name in ("nan", "inf"):
            for together in (False, True):
                assert not all(bool(g.isfinite().all()) for g in found["ends"][f"{name}, {together}"][1])
    assert any(bool(t.any()) for t in g)


def test_objective_and_function_give_the_same_and_hooks_fire_once(ranks):
    expected = Case(**of(2)).by_formula()
    for found in ranks:
        seen = found["as_a_loss"]
        assert relative_error(seen["objective"], expected) < TOL
        assert relative_error(seen["function"], expected) < TOL
        assert set(seen["types"]) == {"DTensor"}
        assert seen["before"] == ([True] * 6, 0)
        assert seen["fired"] == 6
        assert (
            seen["seen"] == [(False, False), (True, True)] * 4
        )  # of three groups and of a ragged one, twice


def test_mixed_precision_is_near_and_leaves_the_shards_in_float32(ranks):
    for found in ranks:
        for name, (same, grads) in found["in_half"].items():
            case = Case(**language(), **of(2 if name == "m=2" else None), together=name == "together")
            error = relative_error([g.double() for g in grads], case.by_formula())
            assert same
            assert all(g.dtype == torch.float32 for g in grads)
            assert error < 0.05, (name, error)


def test_ranks_with_other_numbers_of_examples_climb_along_the_mean_over_examples(ranks):
    batches, w = (
        [other_sizes(10 + rank) for rank in range(WORLD)],
        [p.detach() for p in uneven().parameters()],
    )
    for name, shares in (("equal ranks", (0.5, 0.5)), ("equal examples", (7 / 11, 4 / 11))):
        scale = [2.0 * share for share in shares]
        slopes = [value_and_gradient(uneven(), squared, batch, w)[1] for batch in batches]
        g = [
            sum(s * n * t for s, n, t in zip(scale, (7, 4), ts, strict=True))
            for ts in zip(*slopes, strict=True)
        ]
        length = torch.cat([t.flatten() for t in g]).norm()
        at = added(w, g, RHO / length)
        own = [value_and_gradient(uneven(), squared, batch, at)[1] for batch in batches]
        expected = [
            sum(share * t for share, t in zip(shares, ts, strict=True)) for ts in zip(*own, strict=True)
        ]
        for found in ranks:
            assert relative_error(found["uneven_together"][name], expected) < TOL


def test_rank_of_which_nothing_counts_says_so_and_holds_nobody_up(ranks):
    value, _ = ranks[0]["without_weight"]
    assert value == pytest.approx(naive_sam(uneven(), squared, regression(0), rho=RHO).loss, rel=1e-12)
    assert "batch must hold at least one example of positive weight" in ranks[1]["without_weight"][0]


def test_units_may_be_of_several_modules_in_one_another_or_not_of_the_whole(ranks):
    expected = Case(lambda: seeded(Twice()), **of(2)).by_formula()
    for found in ranks:
        for how, (same, grads) in found["other_units"].items():
            assert same, how
            assert relative_error(grads, expected) < TOL, how


def test_group_of_other_ranks_is_refused(ranks):
    for rank, found in enumerate(ranks):
        assert f"that the model is sharded over, [0, 1], got [{rank}]." in found["alone"]


def test_presets_of_the_ball_family_work(ranks):
    for name in ("sam", "usam", "unified_sam"):
        each = []
        for rank in range(WORLD):
            model = uneven()
            getattr(presets, name)(model, rho=0.1, m=2).backward(
                partial(squared, model), *regression(10 + rank)
            )
            each.append([p.grad for p in model.parameters()])
        expected = [(a + b) / WORLD for a, b in zip(*each, strict=True)]
        for found in ranks:
            assert relative_error(found["presets_of_the_ball"][name], expected) < TOL


if __name__ == "__main__":
    work(scenarios, *sys.argv[1:])
