"""What is said where a package of an extra is missing or broken."""

import subprocess
import sys

import pytest

from lowland.errors import InputError
from lowland.extras import MissingExtra
from lowland.figures.landscape import surface_html

PLANE = [{"x": float(x), "y": float(y), "train_loss": 1.0 + x + y} for x in (0, 1) for y in (0, 1)]


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("lightning", "lightning", "lightning"),
        ("lightning", "torchmetrics", "lightning"),
        ("huggingface", "transformers", "huggingface"),
        ("huggingface", "accelerate", "huggingface"),
    ],
)
def test_a_trainer_without_its_package_names_the_extra(module, package, extra) -> None:
    script = f"""
import sys
sys.modules[{package!r}] = None
try:
    import lowland.sam.trainers.{module}
except ImportError as error:
    print(type(error).__name__, error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = f"{package} must be installed, pip install 'lowland[{extra}]', got no such package."
    assert done.stdout == f"MissingExtra {package} {said}\n"


def test_a_package_that_is_there_and_broken_shows_its_own_cause(tmp_path) -> None:
    package = tmp_path / "lightning"
    package.mkdir()
    (package / "__init__.py").write_text("import a_package_of_its_own\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lowland.sam.trainers.lightning"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'a_package_of_its_own'\n")
    assert "must be installed" not in done.stderr


def test_a_surface_without_plotly_names_the_extra_in_brackets(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.graph_objects", raising=False)
    with pytest.raises(InputError, match=r"pip install 'lowland\[html\]'") as raised:
        surface_html(PLANE, "train_loss", title="", points={})
    assert isinstance(raised.value.__cause__, MissingExtra)


def test_a_broken_plotly_is_not_hidden(monkeypatch, tmp_path) -> None:
    (tmp_path / "plotly").mkdir()
    (tmp_path / "plotly" / "__init__.py").write_text("raise ImportError('half of it is missing')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="half of it is missing"):
        surface_html(PLANE, "train_loss", title="", points={})
