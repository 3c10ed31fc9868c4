"""Lines, curves and planes of trained networks."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import lowland.deep.scenery
from deep.measured import same, trained
from deep.room import make_split
from lowland.deep.data import Split
from lowland.deep.loading import load_subject
from lowland.deep.models import build_model
from lowland.deep.scenery import scenery
from lowland.deep.subject import Subject, SubjectOptions
from lowland.deep.view import SceneryConfig
from lowland.errors import InputError


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [trained(folder / f"run{seed}", seed=seed, lr_max=0.5) for seed in range(3)]
    return {path.name: load_subject(str(path), SubjectOptions(device="cpu")) for path in runs}


def some(subjects, count):
    return dict(list(subjects.items())[:count])


def at(subject, state):
    """Loss and error of the first 100 training examples with other weights."""
    x, y = subject.train.inputs[:100].float() / 255, subject.train.targets[:100]
    with torch.no_grad():
        out = torch.func.functional_call(subject.model, state, (x,))
    return F.cross_entropy(out, y).item(), (out.argmax(1) != y).double().mean().item()


def small(**options):
    return SceneryConfig(**{"n_eval": 100, "points": 5, **options})


def test_a_line_goes_through_both_networks_and_beyond(subjects) -> None:
    two = some(subjects, 2)
    before = {name: {n: t.clone() for n, t in s.model.state_dict().items()} for name, s in two.items()}
    seen = scenery(two, small())
    rows = seen.paths["line"]
    assert [row["t"] for row in rows] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    a, b = (dict(s.model.named_parameters()) for s in two.values())
    first = next(iter(two.values()))
    for row in rows:
        loss, error = at(first, {n: (1 - row["t"]) * a[n] + row["t"] * b[n] for n in a})
        assert row["train_loss"] == pytest.approx(loss, rel=1e-4)
        assert row["train_error"] == pytest.approx(error, abs=0.011)
    assert {"test_loss", "test_error"} <= rows[0].keys()
    assert seen.points == {"run0": (0.0,), "run1": (1.0,)}
    assert seen.distances[-1]["distance"] > 0
    assert all(same(s.model, before[name]) for name, s in two.items())


def test_ends_lie_on_the_line_whatever_the_points(subjects) -> None:
    rows = scenery(some(subjects, 2), small(points=4, low=-0.2, high=1.1)).paths["line"]
    assert {0.0, 1.0} <= {row["t"] for row in rows}
    assert (rows[0]["t"], rows[-1]["t"]) == (-0.2, 1.1)


def test_a_plane_contains_the_three_networks(subjects) -> None:
    seen = scenery(subjects, small(points=4, margin=0.5))
    assert len(seen.paths["plane"]) == 16
    xs = {row["x"] for row in seen.paths["plane"]}
    places = list(seen.points.values())
    width = places[1][0] - min(0.0, places[2][0])
    assert min(xs) < min(p[0] for p in places) - 0.4 * width
    assert max(xs) > max(p[0] for p in places) + 0.4 * width


def test_around_one_network_random_directions_have_it_in_the_middle(subjects) -> None:
    one = some(subjects, 1)
    seen = scenery(one, small(points=3))
    middle = next(row for row in seen.paths["plane"] if row["x"] == row["y"] == 0.0)
    subject = one["run0"]
    assert middle["train_loss"] == pytest.approx(
        at(subject, dict(subject.model.named_parameters()))[0], rel=1e-5
    )
    other = scenery(one, small(points=3, seed=1))
    assert other.paths["plane"][0] != seen.paths["plane"][0]
    line = scenery(one, small(view="random-line", low=-2.0, high=2.0)).paths["line"]
    assert [row["x"] for row in line] == [-2.0, -1.0, 0.0, 1.0, 2.0]


def test_along_sams_perturbation_the_slope_is_the_gradients_norm(subjects) -> None:
    one = some(subjects, 1)
    subject = one["run0"]
    rows = scenery(one, small(view="sam", low=-1e-2, high=1e-2, points=3, n_direction=100)).paths["line"]
    x, y = subject.train.inputs[:100].float() / 255, subject.train.targets[:100]
    slopes = torch.autograd.grad(F.cross_entropy(subject.model(x), y), list(subject.model.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in slopes)).item()
    assert (rows[2]["train_loss"] - rows[0]["train_loss"]) / 0.02 == pytest.approx(norm, rel=1e-2)


def test_a_trained_curve_lies_lower_than_the_line(subjects) -> None:
    points = 0

    def count():
        nonlocal points
        points += 1

    seen = scenery(
        some(subjects, 2), small(view="curve", points=3, curve_steps=150, curve_lr=0.2), on_point=count
    )
    straight, bent = seen.paths["straight"], seen.paths["curve"]
    assert bent[1]["train_loss"] < straight[1]["train_loss"] - 0.05
    for i in (0, 2):
        assert bent[i]["train_loss"] == pytest.approx(straight[i]["train_loss"], rel=1e-5)
    assert points == 6


def normalized(norm, count=2, dtype=torch.float32):
    """Untrained networks with batch or group norm on 300 images, by name."""
    name = {"batch": "resnet_tiny", "group": "resnet_tiny_gn"}[norm]
    subjects = {}
    for seed in range(count):
        torch.manual_seed(seed)
        model = build_model(name, num_classes=3, model_width=2, image_shape=(1, 16, 16)).to(dtype).eval()
        data = make_split(300, shape=(1, 16, 16)), make_split(20, shape=(1, 16, 16), seed=1)
        subjects[f"net{seed}"] = Subject(f"net{seed}", model, *data, "own")
    return subjects


@pytest.mark.parametrize("view", ["line", "curve", "plane", "random-line", "sam"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_view_of_a_network_that_normalizes_is_seen_in_both_precisions(norm, view) -> None:
    options = {"view": view, "points": 3, "n_eval": 30} | ({"curve_steps": 2} if view == "curve" else {})
    rows = []
    for dtype in (torch.float32, torch.float64):
        subjects = normalized(norm, 2 if view in {"line", "curve"} else 1, dtype)
        paths = scenery(subjects, SceneryConfig(**options)).paths
        rows.append([row for path in paths.values() for row in path])
    for narrow, wide in zip(*rows, strict=True):
        assert narrow == pytest.approx(wide, rel=2e-3, abs=0.04)  # errors may differ by an image
    assert rows[0] != rows[1]


def test_batch_norm_statistics_are_those_of_more_images_than_are_evaluated() -> None:
    two = normalized("batch", dtype=torch.float64)
    rows = scenery(two, small(points=3, low=0.0, high=1.0, n_eval=20)).paths["line"]
    first, second = two.values()
    x = first.train.inputs.double() / 255
    model = copy.deepcopy(first.model)
    with torch.no_grad():
        for p, other in zip(model.parameters(), second.model.parameters(), strict=True):
            p.copy_((p + other) / 2)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        seen = {m: [] for m in norms}
        for m in norms:
            m.register_forward_pre_hook(lambda m, args: seen[m].append(args[0]) if m.training else None)
        model.train()
        for part in (x[: len(x) // 2], x[len(x) // 2 :]):
            model(part)
        for m in norms:
            m.running_mean.copy_(sum(z.mean((0, 2, 3)) for z in seen[m]) / 2)
            m.running_var.copy_(sum(z.transpose(0, 1).flatten(1).var(1) for z in seen[m]) / 2)
        loss = F.cross_entropy(model.eval()(x[:20]), first.train.targets[:20])
    assert rows[1]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)  # x / 255 in float32


def test_batch_norm_statistics_are_of_5000_images_in_parts_of_one_size() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(5200, 1, 1, 2, generator=generator), torch.arange(5200) % 3
    split = Split(images, labels, labels, torch.arange(5200))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    sizes = []
    model[2].register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])) if m.training else None)
    two = {name: Subject(name, model, split, split.head(9), "own") for name in "ab"}
    scenery(two, small(points=2, low=0.0, high=1.0, n_eval=10))
    assert sum(sizes) == 2 * 5000
    assert max(sizes) - min(sizes) <= 1


def test_batch_norm_statistics_between_networks_are_estimated_again() -> None:
    two = normalized("batch")
    before = {n: t.clone() for n, t in two["net0"].model.state_dict().items()}
    seen = scenery(two, small(points=3, low=0.0, high=1.0, n_eval=64))
    assert same(two["net0"].model, before)
    with torch.no_grad():
        for name, p in two["net0"].model.named_buffers():
            if name.endswith("running_var"):
                p.fill_(1e-3)
    again = scenery(two, small(points=3, low=0.0, high=1.0, n_eval=64))
    assert again.paths["line"][1]["train_loss"] == pytest.approx(seen.paths["line"][1]["train_loss"])


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {"view": "line"}, "view line is of 2 networks, got 1"),
        (2, {"view": "plane"}, "view plane is of 1 or 3 networks, got 2"),
        (3, {"low": -1.0}, "low must be left out for view plane"),
        (2, {"margin": 1.0}, "margin must be left out for view line"),
        (2, {"curve_lr": 1.0}, "curve_lr must be left out for view line"),
        (2, {"n_direction": 5}, "n_direction must be left out for view line"),
        (2, {"points": 1}, "points must be at least 2, got 1"),
        (2, {"low": 2.0}, "low must be below high, got 2.0 and 1.5"),
        (2, {"low": 2.0, "high": 1.0}, "low must be below high, got 2.0 and 1.0"),
        (3, {"margin": -1.0}, "margin must be non-negative"),
        (2, {"view": "curve", "curve_lr": 0.0}, "curve_lr must be positive"),
    ],
)
def test_wrong_views_are_refused(subjects, count, options, message) -> None:
    with pytest.raises(InputError, match=message):
        scenery(some(subjects, count), small(**options))


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"points": 4}),
        (2, {"view": "curve", "points": 3, "curve_steps": 2}),
        (1, {"view": "plane", "points": 3}),
    ],
)
def test_rows_are_told_as_they_come_and_those_that_are_known_are_not_looked_at_again(
    count, options, tmp_path, monkeypatch
) -> None:
    paths = [trained(tmp_path / str(seed), seed=seed) for seed in range(count)]
    subjects = {p.name: load_subject(str(p), SubjectOptions(device="cpu")) for p in paths}
    config = SceneryConfig(n_eval=20, **options)
    told = []
    whole = scenery(subjects, config, on_row=told.append)
    rows = [{"path": name} | row for name, path in whole.paths.items() for row in path]
    assert json.dumps(told) == json.dumps(rows)

    class Killed(BaseException):
        pass

    first = []

    def die(row) -> None:
        if len(first) == 3:
            raise Killed
        first.append(row)

    with pytest.raises(Killed):
        scenery(subjects, config, on_row=die)
    assert first == rows[:3]
    rest, looked = [], []
    evaluated = lowland.deep.scenery._loss_and_error
    monkeypatch.setattr(lowland.deep.scenery, "_loss_and_error", lambda *a: looked.append(a) or evaluated(*a))
    again = scenery(subjects, config, known=json.loads(json.dumps(first)), on_row=rest.append)
    assert rest == rows[3:]
    assert len(looked) == 2 * len(rest)  # on both splits
    assert again.paths == whole.paths
