"""What the tests of sharded models in one process share."""

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """Of this process alone."""
    file = tmp_path_factory.mktemp("ranks") / "init"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
