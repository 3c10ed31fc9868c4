"""What tools and people see of the public surface: signatures, types, reprs, a sentence for each mistake."""

import inspect
from dataclasses import fields
from types import UnionType
from typing import Literal, get_origin, get_type_hints, is_typeddict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowland
from lowland import L2, SAM, SAMOptimizer, Unnormalized, presets, sharpness
from lowland.sam import (
    BSAM,
    AlongMomentum,
    BayesianAscent,
    DecoupledWeighted,
    Friendly,
    FromLoader,
    Look,
    MicroBatches,
    PreviousBatch,
    Random,
    Window,
    davda54,
    options,
    stable,
)
from lowland.sam.choice import OF_SAM

from .naive import identity, mlp, regression, squared

HANDED_ON = [sharpness.worst_case, sharpness.worst_case_grid, sharpness.suboptimality]


def typed_options(function):
    """The keys of the TypedDict that a function's ``**options`` are."""
    (name,) = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.VAR_KEYWORD]
    (kind,) = get_type_hints(function)[name].__args__
    assert is_typeddict(kind)
    return kind


def refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


# Signatures


def test_signature_of_sam_shows_every_option_with_its_default():
    parameters = inspect.signature(SAM).parameters
    assert list(parameters) == ["params", *OF_SAM]
    assert parameters["rho"].default is inspect.Parameter.empty
    defaults = {name: p.default for name, p in parameters.items() if name not in ("params", "rho")}
    assert (defaults["m"], defaults["steps"], defaults["engine"], defaults["rows"]) == (None, 1, "auto", ())
    assert {parameters[name].kind for name in OF_SAM} == {inspect.Parameter.KEYWORD_ONLY}
    assert "rho: 'float | Schedule'" in str(inspect.signature(SAM.__init__))


def test_typed_options_are_those_of_sam_with_the_same_types():
    of_sam = get_type_hints(SAM.__init__)
    typed = get_type_hints(options.SAMOptions)
    assert {name: of_sam[name] for name in OF_SAM} == typed
    assert options.SAMOptions.__required_keys__ == {"rho"}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_shows_all_options_but_those_that_it_sets(name):
    preset = presets.PRESETS[name]
    own = set(inspect.signature(preset).parameters)
    typed = set(typed_options(preset).__annotations__)
    set_here = {
        "sam": set(),
        "m_sam": set(),
        "n_sam": {"source"},
        "max_sum": {"source"},
        "multi_step": set(),
        "functional_sam": set(),
        "sam_on": {"perturb"},
        **{key: {"combine"} for key in ("gsam", "wsam", "wsam_decoupled")},
        **{key: {"combine"} for key in ("look_sam", "stable_sam", "step_size_only")},
    }.get(name, {"ascent"})
    shown = (own | typed) & set(OF_SAM)
    assert shown == set(OF_SAM) - set_here - ({"rho"} if name == "gsam" else set())
    assert not own & typed


@pytest.mark.parametrize("function", HANDED_ON, ids=lambda f: f.__name__)
def test_searches_show_the_options_of_the_worst_case(function):
    of_class = get_type_hints(sharpness.WorstCase)
    typed = get_type_hints(typed_options(function))
    assert typed == {f.name: of_class[f.name] for f in fields(sharpness.WorstCase) if f.name != "reduction"}
    assert "reduction" in inspect.signature(function).parameters


def test_trainer_shows_its_own_options_and_the_trainers():
    transformers = pytest.importorskip("transformers")
    from lowland.sam.trainers.huggingface import SAMTrainer

    *of_trainer, sam = inspect.signature(SAMTrainer).parameters
    assert of_trainer == list(inspect.signature(transformers.Trainer).parameters)
    assert sam == "sam"
    refused(TypeError, "got roh; nearest: rho", lambda: SAMTrainer(sam={"roh": 0.1}))
    refused(ValueError, "rho must be non-negative", lambda: SAMTrainer(sam={"rho": -0.1}))


def test_nothing_internal_is_an_argument_of_the_function():
    assert not {"workspace", "measure"} & set(inspect.signature(lowland.sam_gradient).parameters)
    assert not {"Weights", "ReusingCombine", "presets"} & set(lowland.sam.__all__)


# Options


OUT_OF_RANGE = [
    ("rho", -1, ValueError, r"^rho must be non-negative and finite, got -1\.$"),
    ("rho", float("nan"), ValueError, r"^rho must be non-negative and finite, got nan\.$"),
    ("rho", float("inf"), ValueError, r"^rho must be non-negative and finite, got inf\.$"),
    (
        "rho",
        "0.1",
        TypeError,
        r"^rho must be a number or a function of the number of steps done, got '0.1'\.$",
    ),
    ("rho", None, TypeError, r"^rho must be a number or a function .*, got None\.$"),
    ("rho", True, TypeError, r"^rho must be a number or a function .*, got True\.$"),
    ("rho", Window, TypeError, r"^rho must be a number or a function .*, got the class Window\.$"),
    ("m", 0, ValueError, r"^m must be a positive whole number, got 0\.$"),
    ("m", "16", ValueError, r"^m must be a positive whole number, got '16'\.$"),
    ("m", 2.0, ValueError, r"^m must be a positive whole number, got 2\.0\.$"),
    ("m", True, ValueError, r"^m must be a positive whole number, got True\.$"),
    ("steps", 0, ValueError, r"^steps must be a positive whole number, got 0\.$"),
    ("steps", None, ValueError, r"^steps must be a positive whole number, got None\.$"),
    ("step_size", 0.0, ValueError, r"^step_size must be positive and finite, got 0\.0\.$"),
    ("l2", -0.1, ValueError, r"^l2 must be non-negative and finite, got -0\.1\.$"),
    ("l2", "0.1", TypeError, r"^l2 must be a number, got '0\.1'\.$"),
    ("engine", "fast", ValueError, r"^engine must be one of \('auto', 'loop', 'batched'\), got 'fast'\.$"),
    ("bn_stats", "second", ValueError, r"^bn_stats must be one of .*, got 'second'\.$"),
    ("reduction", None, ValueError, r"^reduction must be one of \('mean', 'sum'\), got None\.$"),
    ("max_memory", 0, ValueError, r"^max_memory must be a positive number of bytes or None, got 0\.$"),
    ("diagnostics", 1, TypeError, r"^diagnostics must be True or False, got 1\.$"),
    ("shared", "mask", TypeError, r"^shared must be a list of names of entries, got 'mask'\.$"),
    ("rows", None, TypeError, r"^rows must be a list of names of entries, got None\.$"),
    ("perturb", 3, TypeError, r"^perturb must be a name, a pattern or a list of them, got 3\.$"),
    ("perturb", "head.*", ValueError, r"^perturb must name or match parameters .*, got 'head\.\*'\.$"),
    ("ascent", "l2", TypeError, r"^ascent must be an object such as lowland\.L2\(\), got 'l2'\.$"),
    ("ascent", "ASAM", TypeError, r"such as lowland\.Adaptive\(\), which is presets\.asam, got 'ASAM'\.$"),
    ("ascent", "unnormalised", TypeError, r"such as lowland\.Unnormalized\(\), .*, got 'unnormalised'\.$"),
    ("ascent", L2, TypeError, r"^ascent must be an object such as L2\(\), got the class\.$"),
    ("ascent", 2, TypeError, r"^ascent must be an Ascent or a BlindAscent, got int\.$"),
    (
        "combine",
        Look,
        TypeError,
        r"^combine must be a function or an object that is one, got the class Look\.$",
    ),
    ("combine", 0.4, TypeError, r"^combine must be a function or an object that is one, got 0\.4\.$"),
    ("weight", 2.0, TypeError, r"^weight must be a function or an object that is one, got 2\.0\.$"),
    ("source", [1], TypeError, r"^source must have a method ascent_batch, .*, got \[1\]\.$"),
    ("source", PreviousBatch, TypeError, r"^source must have .*, got the class PreviousBatch\.$"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("name", "value", "error", "message"), OUT_OF_RANGE, ids=lambda v: repr(v)[:30])
def test_option_out_of_range_is_refused_where_it_is_given(name, value, error, message):
    refused(error, message, lambda: SAM(mlp(), **{"rho": 0.1, name: value}))
    sam = SAM(mlp(), rho=0.1)
    before = getattr(sam, name)
    refused(error, message, lambda: setattr(sam, name, value))
    assert getattr(sam, name) is before


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [case for case in OUT_OF_RANGE if case[0] in ("rho", "ascent", "combine", "bn_stats")],
    ids=lambda v: repr(v)[:30],
)
def test_wrapper_of_an_optimizer_refuses_the_same(name, value, error, message):
    base = torch.optim.SGD(mlp().parameters(), lr=0.1)
    refused(error, message, lambda: SAMOptimizer(base, **{"rho": 0.1, name: value}))
    optimizer = SAMOptimizer(base, rho=0.1)
    refused(error, message, lambda: setattr(optimizer, name, value))


def test_every_literal_option_takes_each_of_its_values():
    hints = get_type_hints(SAM.__init__)
    literal = {name: hints[name].__args__ for name in OF_SAM if get_origin(hints[name]) is Literal}
    assert literal.keys() == {"bn_stats", "reduction", "engine", "capture"}
    for name, values in literal.items():
        for value in values:
            assert getattr(SAM(mlp(), **{"rho": 0.1, name: value}), name) == value


def test_assigned_pattern_is_what_moves():
    module, seen = mlp(), []
    sam, start = SAM(module, rho=0.3), identity(module)

    def loss(x, y):
        seen.append([a != b for a, b in zip(identity(module), start, strict=True)])
        return squared(module, x, y)

    sam.perturb = "2.*"
    sam.backward(loss, *regression())
    assert seen[1] == [False, False, True, True]


@pytest.mark.usefixtures("untyped")
def test_an_option_that_there_is_not_is_refused_with_the_nearest():
    sam = SAM(mlp(), rho=0.1)
    for name, nearest in (("roh", "rho"), ("combines", "combine"), ("step", "steps_done")):
        message = rf"^SAM must be given options that it has, got {name}; nearest: {nearest}\.$"
        refused(AttributeError, message, lambda name=name: setattr(sam, name, 0.3))
        refused(TypeError, message, lambda name=name: SAM(mlp(), rho=0.1, **{name: 0.3}))
    refused(AttributeError, r"got zebra\.$", lambda: setattr(sam, "zebra", 1))
    assert sam.rho == 0.1


def test_subclass_has_attributes_of_its_own():
    class Mine(SAM):
        def __init__(self, module):
            super().__init__(module, rho=0.1)
            self.history = []

    assert Mine(mlp()).history == []
    refused(ValueError, "non-negative", lambda: setattr(Mine(mlp()), "rho", -1.0))


# Calls that mean something else


@pytest.mark.usefixtures("untyped")
def test_calls_of_other_libraries_are_told_what_to_write():
    module = mlp()
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    wrapped = r"^SAM must be given the model and stands beside the optimizer, got "
    refused(TypeError, r"^rho must be given by its name, SAM\(model, rho=0\.05\)", lambda: SAM(module, 0.05))
    refused(TypeError, wrapped + "one of class SGD: lowland.SAMOptimizer", lambda: SAM(base))
    refused(TypeError, wrapped + "one of class SGD: lowland.SAMOptimizer", lambda: SAM(base, rho=0.1))
    refused(TypeError, wrapped + "an optimizer to wrap", lambda: SAM(module.parameters(), torch.optim.SGD))
    refused(
        TypeError,
        r"to be adaptive, as lowland\.presets\.asam\(model, rho=0\.5\) does, got adaptive=True\.$",
        lambda: SAM(module, rho=0.1, adaptive=True),
    )
    refused(TypeError, "missing 1 required keyword-only argument: 'rho'", lambda: SAM(module))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("way", ["backward", "objective"])
def test_mistakes_at_the_call_have_a_sentence_and_leave_everything(way):
    module, (x, y) = mlp(), regression()
    sam, before = SAM(module, rho=0.1), identity(module)
    call = getattr(sam, way)
    refused(
        TypeError,
        r"^loss must be a function, which is called with the batch: .*; got Tensor\.$",
        lambda: call(squared(module, x, y), x, y),
    )
    refused(
        ValueError,
        r"^batch must not depend on the params, got a tensor that was made from them: ",
        lambda: call(F.mse_loss, module(x), y),
    )
    refused(
        ValueError,
        r"^batch must not depend",
        lambda: call(lambda d: d["out"].mean(), {"out": [y, 2 * module(x)]}),
    )
    refused(ValueError, r"^batch must not", lambda: call(F.mse_loss, y, y, ascent_batch=(module(x), y)))
    with torch.inference_mode():
        refused(
            ValueError,
            r"^SAM needs gradients: it must be called outside torch\.inference_mode, got it inside\.$",
            lambda: call(lambda x, y: squared(module, x, y), x, y),
        )
    assert identity(module) == before
    assert all(p.grad is None for p in module.parameters())
    assert sam.steps_done == 0


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")
def test_batch_that_depends_on_another_model_is_a_batch():
    module, other, (x, y) = mlp(), nn.Linear(4, 4).double(), regression()
    SAM(module, rho=0.1).backward(lambda x, y: squared(module, x, y), other(x), y)
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.usefixtures("untyped")
def test_step_of_sam_points_to_the_optimizers():
    refused(TypeError, r"optimizer\.step\(\), got sam\.step\(\): ", SAM(mlp(), rho=0.1).step)


@pytest.mark.parametrize("kinds", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_batch_of_another_type_fails_alike_in_both_engines(kinds):
    said = set()
    for engine in ("loop", "batched", "auto"):
        module, (x, y) = mlp(dtype=kinds[0]), regression(dtype=kinds[1])
        with pytest.raises(RuntimeError) as error:
            SAM(module, rho=0.1, m=2, engine=engine).backward(
                lambda x, y, module=module: squared(module, x, y), x, y
            )
        said.add(str(error.value))
    assert len(said) == 1


# Reprs


@pytest.mark.parametrize("room", [lowland, lowland.sam, sharpness], ids=lambda room: room.__name__)
def test_every_public_object_has_a_repr_of_its_own(room):
    classes = [c for c in map(room.__dict__.get, room.__all__) if isinstance(c, type)]
    concrete = [c for c in classes if not getattr(c, "_is_protocol", False) and not isinstance(c, UnionType)]
    assert len(concrete) > 5
    assert [c.__name__ for c in concrete if c.__repr__ is object.__repr__] == []


def test_reprs_show_what_was_given():
    module = mlp()
    base, bayesian = (
        torch.optim.SGD(module.parameters(), lr=0.1),
        BSAM(module.parameters(), 0.1, num_examples=9),
    )
    wanted = {
        SAM(module, rho=0.1): "SAM(4 parameters, rho=0.1)",
        SAM(
            module, rho=0.1, m=4, engine="loop", step_size=1.0
        ): "SAM(4 parameters, rho=0.1, m=4, engine='loop')",
        presets.look_sam(module): "SAM(4 parameters, rho=0.05, combine=Look(k=5, alpha=0.7))",
        presets.stable_sam(module, rho=Window(0.1)): (
            "SAM(4 parameters, rho=Window(rho=0.1, start=0, stop=None), combine=stable)"
        ),
        Friendly(0.5, ascent=Unnormalized()): "Friendly(sigma=0.5, lam=0.9, ascent=Unnormalized())",
        PreviousBatch(): "PreviousBatch()",
        FromLoader([1, 2], 2): "FromLoader(loader=[1, 2], num_batches=2)",
        DecoupledWeighted(0.9, base): "DecoupledWeighted(gamma=0.9)",
        BayesianAscent(bayesian): "BayesianAscent(optimizer=BSAM)",
        MicroBatches([(1,), (2,)]): "MicroBatches(2 parts)",
        MicroBatches(iter([])): "MicroBatches(list_iterator)",
    }
    assert {repr(thing): text for thing, text in wanted.items()} == {text: text for text in wanted.values()}
    assert repr(SAM(module, rho=0.1, combine=stable, ascent=Random())).endswith("combine=stable)")
    assert (
        repr(SAM(module, rho=0.1, ascent=AlongMomentum(base)))
        == "SAM(4 parameters, rho=0.1, ascent=AlongMomentum)"
    )


@pytest.mark.usefixtures("untyped")
def test_shim_refuses_what_its_options_cannot_be():
    params = list(mlp().parameters())
    refused(
        TypeError,
        "adaptive must be True or False, got 1",
        lambda: davda54.SAM(params, torch.optim.SGD, adaptive=1),
    )
    refused(TypeError, "rho must be a number", lambda: davda54.SAM(params, torch.optim.SGD, rho="0.1"))
