"""What the tests of every room share."""

import zlib
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

import numeric_tower

torch.set_num_threads(1)  # on every machine; workers share the cores, and tensors of tests are tiny


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's folders; what is decoded is decoded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWLAND_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOWLAND_DATA", raising=False)
        yield


_TYPED = 4


@pytest.fixture(autouse=True)
def typed_in_part(request: pytest.FixtureRequest) -> Iterator[None]:
    """Types and shapes are checked in every fourth test, by its name: checking takes longer than the code."""
    before = config.jaxtyping_disable
    numeric_tower.check_anew()
    config.update("jaxtyping_disable", zlib.crc32(request.node.nodeid.encode()) % _TYPED > 0)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the type checks that only pytest switches on: users meet the library's own messages."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture
def tiny_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's deep figures at scale quick take seconds: digits, eight neurons, two seeds."""
    import dataclasses

    from lowland.deep import TrainConfig
    from lowland.figures.paper import fig9_interpolation, finetuned, networks, suboptimality

    tiny = TrainConfig(model="fc", model_width=8, epochs=2, batch_size=64, lr_max=0.05)
    monkeypatch.setitem(networks._SETTINGS, "quick", tiny)
    monkeypatch.setitem(networks.SEEDS, "quick", (0, 1))
    monkeypatch.setitem(finetuned._FURTHER, "quick", {"epochs": 1, "lr_max": 0.01})
    view = dataclasses.replace(fig9_interpolation._VIEW, points=5, n_eval=64)
    monkeypatch.setattr(fig9_interpolation, "_VIEW", view)
    monkeypatch.setitem(suboptimality.SIZES, "quick", (4, 16))
    monkeypatch.setitem(suboptimality.STEPS, "quick", 3)
    monkeypatch.setitem(suboptimality.EXAMPLES, "quick", 32)
