"""SAM by ``accelerate launch``, in one process and in two. This file is also the script that is launched."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..naive import relative_error

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
SAMTrainer = pytest.importorskip("lowland.sam.trainers.huggingface").SAMTrainer

from .tiny import ONE_STEP, gradient_by_hand, language_model, moved, texts, trained  # noqa: E402

TEXTS = texts()
SHARES = [TEXTS[0:2], TEXTS[2:4]]
"""Of two processes, which have different numbers of tokens."""


def steps(folder, size):
    """The gradient of one step of four texts, whole and text by text."""
    for m in (None, 1):
        sam = {"rho": 0.3, "m": m, "engine": "loop"}
        trainer = trained(SAMTrainer, folder, sam=sam, **ONE_STEP, per_device_train_batch_size=size)
        processes = trainer.accelerator.num_processes
        torch.save(moved(trainer), folder / f"{processes}-{m}-{trainer.args.process_index}.pt")


def launched(folder):
    from accelerate import debug_launcher

    torch.set_num_threads(1)
    debug_launcher(steps, (folder, 2), num_processes=2)
    steps(folder, 4)


@pytest.mark.slow
def test_launched_processes_make_the_step_of_sam_by_hand(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    rest = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    script = ["-m", "tests.sam.trainers.test_launched", str(tmp_path)]
    run = subprocess.run(
        [*command, *rest, *script], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for m, (processes, ranks) in itertools.product((None, 1), ((1, [0]), (2, [0, 1]))):
        shares = SHARES if processes == 2 else [TEXTS[:4]]
        groups = shares if m is None else [[row] for row in TEXTS[:4]]
        expected = gradient_by_hand(language_model(), groups, 0.3)
        for rank in ranks:
            found = torch.load(tmp_path / f"{processes}-{m}-{rank}.pt")
            assert relative_error(found, expected) < 1e-12


if __name__ == "__main__":
    launched(Path(sys.argv[1]))
