"""A run directory runs nothing of a stranger's choice."""

import sys
from pathlib import Path

import pytest

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.deep.loading import load_subject
from lowland.deep.subject import SubjectOptions
from lowland.deep.trusted import require_trusted
from lowland.errors import InputError

RUN = Path("runs/a")


@pytest.mark.parametrize(
    ("options", "package"),
    [
        ({"model": "torch.hub:load"}, "torch"),
        ({"model": "os:system"}, "os"),
        ({"model": "builtins:exec"}, "builtins"),
        ({"model": "lowland.sam:SAM"}, "lowland"),
        ({"model": "pytest:main"}, "pytest"),
        ({"model": "fc", "loss": "subprocess:run"}, "subprocess"),
        ({"model": "fc", "data": "numpy:load"}, "numpy"),
    ],
)
def test_functions_of_installed_packages_need_a_word(options: dict[str, str], package: str) -> None:
    config = TrainConfig(**options)
    with pytest.raises(InputError, match=rf"^runs/a names .* --trust {package}, got no such\.$"):
        require_trusted(config, (), RUN)
    require_trusted(config, (package,), RUN)


def test_functions_of_the_users_own_modules_need_none() -> None:
    require_trusted(
        TrainConfig(model="own_code:net", loss="own_code:each_loss", data="own_code:text"), (), RUN
    )


def write_package(folder: Path, *, marked: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if marked:
        (folder / "__init__.py").write_text("")
    (folder / "payload.py").write_text("raise RuntimeError('it runs')\n")


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    ("inside", "name", "where"),
    [
        ("stranger", "stranger.payload:net", "."),
        ("stranger/more", "stranger.more.payload:net", "."),
        ("stranger", "payload:net", "stranger"),
    ],
)
def test_modules_that_lie_in_the_run_need_a_word(
    inside: str, name: str, where: str, marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path / inside, marked=marked)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path / where)
    with pytest.raises(InputError, match="which is installed or lies in the run"):
        require_trusted(TrainConfig(model=name), (), tmp_path / "stranger")


def test_a_folder_of_modules_without_a_mark_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "nets.py").write_text("def net():\n    pass\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    require_trusted(TrainConfig(model="models.nets:net"), (), RUN)
    sys.modules.pop("models.nets")
    sys.modules.pop("models")


def test_names_of_ours_are_no_functions() -> None:
    require_trusted(TrainConfig(), (), RUN)


def test_a_function_that_a_strangers_run_names_is_not_called(tmp_path: Path) -> None:
    config = TrainConfig(model="fc", model_width=4, epochs=1, frac_train=0.1, batch_size=32)
    launch(config, tmp_path / "x", Place("cpu"), Control())
    stored = tmp_path / "x" / "config.json"
    marker = tmp_path / "called"
    text = stored.read_text().replace('"model": "fc"', f'"model": "os:mkdir", "model_arg": ["path={marker}"]')
    stored.write_text(text.replace('"model_width": 4', '"model_width": null'))
    with pytest.raises(
        InputError,
        match="names os:mkdir, a function of os, which is installed or lies in the run, as its model",
    ):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    assert not marker.exists()
