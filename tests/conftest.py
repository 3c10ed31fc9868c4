"""What the tests of every room share."""

import gc
import os
import zlib
from collections.abc import Iterator

# Before torch is loaded, and for every process of a test: threads that wait, as those of tiny tensors mostly
# do, would take the cores from the other workers, five times what the work takes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no network: a download would be tried for half a minute

import pytest
import torch
from jaxtyping import config

import numeric_tower

torch.set_num_threads(1)  # on every machine; workers share the cores, and tensors of tests are tiny


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that is made meanwhile is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def old_stays() -> None:
    """What is there before a file's tests is not walked through when garbage is collected in them.

    All modules and tests are a million objects, and the batched engine collects where a loss may keep a
    tensor, transformers after each training: half a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker has one to itself when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's folders; what is decoded is decoded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWLAND_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOWLAND_DATA", raising=False)
        yield


_TYPED = 12


@pytest.fixture(autouse=True)
def typed_in_part(request: pytest.FixtureRequest) -> Iterator[None]:
    """Types and shapes are checked in every twelfth test, by name: checking takes longer than the code."""
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
