"""A run from its config: data, directory, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowland.deep.checkpoint import require_config
from lowland.deep.companions import companions
from lowland.deep.config import TrainConfig
from lowland.deep.data import TrainingData, divided_own_data, load_training_data, read_own_data
from lowland.deep.images import write_image_grid
from lowland.deep.models import MODEL_NAMES, is_convolutional
from lowland.deep.new_network import new_network
from lowland.deep.options import OF_OWN_DATA
from lowland.deep.origin import require_same_origin, warn_of_changes, write_origin
from lowland.deep.processes import own_accelerator, ranks
from lowland.deep.seeding import generators_kept
from lowland.deep.state import TrainState
from lowland.deep.tensors import write_tensors
from lowland.deep.training import Control, train
from lowland.deep.trial import require_meaning, tried
from lowland.errors import InputError
from lowland.runs import Run, config_hash, describe_environment
from lowland.runs.threads import require_threads

IMAGE_SIZE = 32
"""Height and width that images are padded to for the convolutional models."""


@dataclass(frozen=True)
class Place:
    """Where a run happens, as opposed to what it is.

    Attributes:
        device: ``auto`` takes an accelerator if there is one.
        data_dir: Folder of data sets; see :func:`lowland.deep.data.load_training_data`.
        threads: Number of CPU threads; the default of torch if ``None``.
        directory: What relative paths in the config begin at; the working directory if ``None``.
        processes: How many of this machine train a run together, started for it unless they are there.

    Raises:
        InputError: If no machine has so many threads.

    Example:
        >>> from lowland.deep import Place
        >>> Place(device="cpu").torch_device()
        device(type='cpu')
        >>> Place(device="cpu", threads=2).to_dict()["threads"]
        2
    """

    device: str = "auto"
    data_dir: Path | None = None
    threads: int | None = None
    directory: Path | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        """Raises :class:`~lowland.errors.InputError` for a number of threads that no machine has."""
        require_threads(self.threads)

    def to_dict(self) -> dict[str, Any]:
        """The place as plain JSON values, resolved to what is used here."""
        device = self.torch_device()
        return {
            "device": device.type if ranks().several else str(device),
            "data_dir": None if self.data_dir is None else str(self.data_dir.absolute()),
            "threads": self.threads or torch.get_num_threads(),
            "directory": str(self.directory or Path.cwd()),
        }

    @classmethod
    def of(cls, run: Run) -> Place:
        """Where ``run`` was started.

        Raises:
            InputError: If the run does not say it in a way that can be read.
        """
        place = run.environment.get("place", {})
        data_dir, directory = (Path(p) if p else None for p in map(place.get, ("data_dir", "directory")))
        return cls(place.get("device", "auto"), data_dir, place.get("threads"), directory)

    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            InputError: If there is no such device here.
        """
        if self.device == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            return own_accelerator(accelerator or torch.device("cpu"))
        try:
            device = own_accelerator(torch.device(self.device))
            torch.zeros(1, device=device).item()  # meta has no numbers
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(
                f"device must be one of this machine's, got {self.device!r}: {reason}."
            ) from None
        return device


_HERE = Place()


def run_name(config: TrainConfig) -> str:
    """A readable name for a run of ``config``, which ends in the config's hash.

    Args:
        config: The run.

    Example:
        >>> from lowland.deep import TrainConfig, run_name
        >>> run_name(TrainConfig(model="fc", sam_rho=0.1, m=16)).rpartition("-")[0]
        'digits-fc-sam0.1-m16-seed0'
    """
    parts = [config.data_name, config.model.replace(":", ".")]
    if config.p_label_noise > 0:
        parts.append(f"noise{config.p_label_noise:g}")
    if config.is_sam:
        radius = f"{config.sam_rho:g}" if config.sam_rho else f"{config.sam_lr_mult:g}lr"
        parts.append(("usam" if config.sam_no_grad_norm else "sam") + radius)
        if config.group_size < config.batch_size:
            parts.append(f"m{config.group_size}")
    else:
        parts.append("erm")
    return "-".join([*parts, f"seed{config.seed}", config_hash(config.to_dict())])


def load_data(config: TrainConfig, place: Place = _HERE) -> TrainingData:
    """The data of ``config``; images of a set of ours padded to 32x32 pixels for a convolutional model.

    Args:
        config: The run.
        place: Where its folders are.

    Raises:
        InputError: If they cannot be had, or are not such data.

    Example:
        >>> from lowland.deep import TrainConfig, load_data
        >>> data = load_data(TrainConfig(dataset="gaussians_binary", model="linear"))
        >>> len(data.train), data.num_classes, data.input_shape
        (900, 2, (1, 1, 100))
    """
    if config.data is not None:
        before = place.directory
        is_there = before is not None and (before / config.data).exists()
        own = read_own_data(config, directory=before if is_there else None)
        data = divided_own_data(
            own, seed=config.seed, frac_train=config.frac_train, p_label_noise=config.p_label_noise
        )
    else:
        data = load_training_data(
            config.dataset,
            seed=config.seed,
            frac_train=config.frac_train,
            p_label_noise=config.p_label_noise,
            noise_type=config.noise_type,
            pad_to=padding_for(config.model),
            data_dir=place.data_dir,
        )
    return data.standardized() if config.normalize else data


def padding_for(model: str) -> int | None:
    """What images of our sets are padded to for a model of ours; ``None`` for those that take any shape."""
    return IMAGE_SIZE if model in MODEL_NAMES and is_convolutional(model) else None


def launch(config: TrainConfig, path: Path | None, place: Place, control: Control) -> list[dict[str, Any]]:
    """Trains ``config`` in the run directory ``path``, from its checkpoint if it has one.

    Args:
        config: What to train.
        path: The run's directory, made if there is none; ``None`` writes nothing.
        place: Where to run.
        control: How to run.

    Where ``torch.distributed`` has a group, its processes train together, and all call this: the first one
    reads data before the others do, and alone writes.

    Returns:
        The rows of the metrics.

    Raises:
        InputError: If the data cannot be had, or ``path`` holds something else.
        Interrupted: If ``control.should_stop`` said so.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Control, Place, TrainConfig, launch
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=2, batch_size=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = launch(config, Path(folder) / "run", Place(device="cpu"), Control())
        ...     print(sorted(file.name for file in Path(folder, "run").glob("*.json")))
        ['config.json', 'env.json', 'summary.json']
        >>> rows[-1]["test_error"] < 0.1
        True
    """
    with companions(config, path, place, control.checkpoint_every):
        return _launched(config, path, place, control)


def _launched(config: TrainConfig, path: Path | None, place: Place, control: Control) -> list[dict[str, Any]]:
    group = ranks()
    device = group.together(place.torch_device)
    if path is not None:  # another config is refused before any data is read
        group.first_alone(lambda: require_same_run(path, config))
    data = group.one_by_one(lambda: load_data(config, place))
    if path is not None:
        group.together(lambda: require_same_origin(Run(path), data))
    if group.is_first:
        control.on_data(data)
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False), _threads(place.threads):
        if path is None:
            return train(config, data, device, None, control)
        if not group.first_alone(Run(path).checkpoint_path.exists):
            with generators_kept():
                # What cannot be trained is refused before a file is written.
                group.together(lambda: TrainState(config, data, device, beside=path.parent))
        with ExitStack() as stack:
            group.first_alone(lambda: _begin(config, Run(path), data, place, stack))
            return train(config, data, device, Run(path), control)


def _begin(config: TrainConfig, run: Run, data: TrainingData, place: Place, stack: ExitStack) -> None:
    """Makes the run's directory, or finds it, and keeps it for this process until the stack ends."""
    environment = {**describe_environment(), "place": place.to_dict()}
    stack.enter_context(Run.create(run.path, config.to_dict(), environment).locked())
    if run.checkpoint_path.exists():
        warn_of_changes(run, config)
    else:
        _write_inputs(config, run, data)


def require_startable(
    configs: Sequence[TrainConfig],
    data_dir: Path | None,
    on_data: Callable[[TrainConfig, TrainingData], object] = lambda *_: None,
) -> None:
    """Reads each data set that is needed once, and tries each network and loss of the user's.

    So what cannot be had, or does not go together, is told before anything runs.

    Args:
        configs: What is to run.
        data_dir: Folder of data sets.
        on_data: Called with the data of each set, and the first run that has them, once they are tried.

    Raises:
        InputError: If it is so.
    """
    place = Place(data_dir=data_dir)
    alike: dict[tuple[Any, ...], list[TrainConfig]] = {}
    for config in configs:
        how = (getattr(config, name) for name in ("dataset", "data", "normalize", *OF_OWN_DATA))
        alike.setdefault((*how, padding_for(config.model)), []).append(config)
    for of_data in alike.values():
        data = load_data(of_data[0], place)
        own_code = {(c.model, c.model_arg, c.loss, c.group_size): c for c in of_data if c.is_own}
        for config in own_code.values():
            with generators_kept():
                require_meaning(config, data)
                tried(config, new_network(config, data), data)
        on_data(of_data[0], data)


def require_same_run(path: Path, config: TrainConfig) -> None:
    """Raises :class:`InputError` if ``path`` holds a run of another config, or was trained by another."""
    if (path / "config.json").exists():
        run = Run.create(path, config.to_dict(), {})
        if run.checkpoint_path.exists():
            require_config(run.checkpoint_path, config)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_inputs(config: TrainConfig, run: Run, data: TrainingData) -> None:
    indices = {"train": data.train.indices, "validation": data.validation.indices}
    write_tensors(run.path / "split.safetensors", indices)
    write_origin(run, config, data)
    if config.export_images:
        write_image_grid(run.path / "images.png", config, data)
