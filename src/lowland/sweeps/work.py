"""What is done with each of many tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lowland.deep import Place
from lowland.sweeps.task import How, Store, Task


@dataclass(frozen=True)
class Work:
    """Carries out one task; can be sent to another process.

    Attributes:
        store: Where results are, and will be.
        place: Device, data and threads of one task.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.deep import Place, TrainConfig
        >>> from lowland.sweeps import Store, Training, Work
        >>> config = TrainConfig(dataset="gaussians_binary", model="linear", epochs=1, batch_size=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store, shares = Store(Path(folder)), []
        ...     work = Work(store, Place(device="cpu"))
        ...     work(Training(config), on_progress=shares.append, should_stop=lambda: False)
        ...     print(store.has(Training(config)), shares[-1])
        True 1.0
    """

    store: Store
    place: Place

    def __call__(
        self, task: Task, on_progress: Callable[[float], object], should_stop: Callable[[], bool]
    ) -> None:
        """Does ``task``; ``on_progress`` is called with the share that is done.

        Raises:
            Interrupted: If ``should_stop`` said so, and the task can go on later.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.place.threads or before)
        try:
            task.carry_out(self.store, How(self.place, on_progress, should_stop))
        finally:
            torch.set_num_threads(before)
