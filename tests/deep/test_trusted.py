"""A run directory runs nothing of a stranger's choice."""

from pathlib import Path

import pytest

from lowland.deep import Control, Place, TrainConfig, launch
from lowland.deep.subject import SubjectOptions, load_subject
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
        InputError, match="names os:mkdir, a function of the installed package os, as its model"
    ):
        load_subject(str(tmp_path / "x"), SubjectOptions(device="cpu"))
    assert not marker.exists()
