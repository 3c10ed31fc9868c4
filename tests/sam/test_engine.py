"""Which look runs the groups, and what a call needs of torch for that."""

import subprocess
import sys
import textwrap


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
    )


STEP = """
    import sys, torch
    from lowland import SAM
    model = torch.nn.Linear(3, 1)
    x = torch.randn(8, 3)
    sam = SAM(model, rho=0.1, m=1, engine={engine!r})
    for _ in range(2):
        sam.backward(lambda x: model(x).square().mean(), x)
"""

MEASURE = """
    from lowland.sharpness import worst_case
    loss = lambda x: model(x).square().mean()
    worst_case(loss, list(model.parameters()), (x,), rho=0.1, m=1, engine={engine!r})
"""


def test_loop_imports_nothing_of_the_look_at_many_groups():
    program = (STEP + MEASURE).format(engine="loop")
    done = run(program + "\n    print([m for m in sys.modules if 'sam.batched' in m])")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


WITHOUT = """
    import torch
    functions = torch._C._functorch
    del functions._add_batch_dim
    import lowland.sam.engine as engine
    engine.Plan._too_small = lambda *_: False
"""


def test_auto_does_without_private_names_of_torch_and_says_so_once():
    done = run(WITHOUT + STEP.format(engine="auto"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("one after the other because of a torch without what that needs") == 1
    assert "torch._C._functorch._add_batch_dim" in done.stderr


def test_auto_measures_without_them_too():
    done = run(WITHOUT + STEP.format(engine="loop") + MEASURE.format(engine="auto"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("one after the other because of a torch without what that needs") == 1


def test_batched_is_refused_by_name_without_them():
    uses = [textwrap.dedent(use.format(engine="batched")) for use in (STEP, MEASURE)]
    program = f"""
    names = {{}}
    for use in {uses!r}:
        try:
            exec(use, names)
        except RuntimeError as error:
            print(error)
    """
    done = run(WITHOUT + program)
    assert done.returncode == 0, done.stderr
    refused = done.stdout.splitlines()
    assert len(refused) == 2
    end = "got a torch without what that needs, torch._C._functorch._add_batch_dim."
    assert all(line.endswith(end) for line in refused)
