"""Loops with an ``Accelerator`` and ``SAMTrainer``, of models that accelerate or transformers shards.

accelerate shards on accelerators only. On CPUs, where it would fall back to data parallel without a word, it
is told here that they are such; on two GPUs nothing is. transformers shards what it loads on either.

This file is also the script that each process runs.
"""

import os
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM, Unnormalized

from ..data_parallel.launch import TORCHRUN, WORLD, found_by_ranks, of_all, work
from ..data_parallel.truth import accumulated, trained
from ..naive import bits, mlp, regression, relative_error, squared

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
SAMTrainer = pytest.importorskip("lowland.sam.trainers.huggingface").SAMTrainer

from accelerate.utils import FullyShardedDataParallelPlugin  # noqa: E402

from ..data_parallel.test_accelerate import of_trainer, texts  # noqa: E402
from ..trainers import tiny  # noqa: E402

pytestmark = pytest.mark.slow  # processes that import it take long

RHO, CLIP = 0.4, 0.1

CUTS = {"whole": None, "singly": 1}


def told(accelerator, plugin):
    """Tells accelerate that this CPU is one of the devices that it shards on."""
    for state in (accelerate.PartialState(), accelerator.state):
        state.distributed_type = accelerate.DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def whole(model):
    """Weights of a model that is in shards indeed."""
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return [p.detach().full_tensor().cpu() for p in model.parameters()]


# A user's own loop

EXAMPLES, BATCH, EPOCHS = 16, 2, 2

LOOPS = {
    "objective": {},
    "objective, accumulated": {"accumulate": 2},
    "backward, accumulated": {"accumulate": 2, "backward": True},
    "clipped": {"clip": CLIP},
}


def loop(m, *, on_cpu, accumulate=1, backward=False, clip=None):
    """Weights and steps; SAM's gradient comes by ``accelerator.backward`` or by its own."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Linear"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = accelerate.Accelerator(
        cpu=on_cpu, fsdp_plugin=plugin, gradient_accumulation_steps=accumulate
    )
    if on_cpu:
        told(accelerator, plugin)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(*regression(3, examples=EXAMPLES)), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    sam = SAM(model, rho=RHO, m=m)
    for x, y in [*loader] * EPOCHS:
        with accelerator.accumulate(model):
            if backward:
                sam.backward(partial(squared, model), x, y, scale=1 / accumulate)
            else:
                accelerator.backward(sam.objective(partial(squared, model), x, y))
            if clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return whole(model), sam.steps_done


class Clipped(torch.optim.SGD):
    """Its gradient is first clipped in norm."""

    def step(self):
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], CLIP)
        super().step()


def of_loop(m, *, accumulate=1, backward=False, clip=None):  # noqa: ARG001
    columns = regression(3, examples=EXAMPLES)
    batches = [tuple(t[i : i + BATCH] for t in columns) for i in range(0, EXAMPLES, BATCH)] * EPOCHS
    dealt = [batches[i : i + WORLD] for i in range(0, len(batches), WORLD)]
    make = partial(Clipped if clip else torch.optim.SGD, lr=0.1, momentum=0.9)
    return trained(mlp(), accumulated(squared, dealt, m, accumulate), rho=RHO, make=make)[0]


# SAMTrainer

ADAM = {"optim": "adamw_torch", "learning_rate": 0.01, "adam_epsilon": 1e-3, "max_grad_norm": 0.0}
OF_TRANSFORMERS = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["GPT2Block"]}}

TRAINERS = {
    "three steps": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "a rank without labels that count": {"uncounted": True},
    "unnormalized": {"sam": {"ascent": Unnormalized()}},
    "l2": {"sam": {"l2": 0.3}},
    "means over ranks": {"average_tokens_across_devices": False},
}
"""Texts have different numbers of tokens, and rows with padding stand beside rows without."""


class OnCPU(SAMTrainer):
    """Has accelerate shard on CPUs."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        told(self.accelerator, FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args))
        self.is_fsdp_enabled = True


def by_trainer(folder, m, *, on_cpu, uncounted=False, sam=None, **options):
    cls = OnCPU if on_cpu else SAMTrainer
    options = {**ADAM, **OF_TRANSFORMERS, "use_cpu": on_cpu, "per_device_train_batch_size": 2, **options}
    given = {"rho": RHO, "m": m, **(sam or {})}
    trainer = tiny.trained(cls, folder, data=texts(uncounted=uncounted), sam=given, **options)
    return whole(trainer.model), trainer.sam.steps_done


def resumed(folder, *, on_cpu):
    """Four steps in one go, of which the second is kept; then two from there."""
    options = {"max_steps": 4, "sam": {"rho": _grows}, "on_cpu": on_cpu}
    in_one_go, _ = by_trainer(folder, 1, save_strategy="steps", save_steps=2, **options)
    weights, steps = by_trainer(folder, 1, resume=str(folder / "checkpoint-2"), **options)
    return weights, steps, in_one_go


def _grows(step):
    return 0.1 * (step + 1)


LOADED = {"three steps": {}, "accumulated": {"gradient_accumulation_steps": 2}}


def loaded(folder, m, *, on_cpu, **options):
    """The same of a model that ``from_pretrained`` has sharded."""
    accelerate.PartialState(cpu=on_cpu)
    config = transformers.DistributedConfig(fsdp_size=WORLD)
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder / "llama", dtype=torch.float64, distributed_config=config
    )
    options = {**ADAM, "use_cpu": on_cpu, "per_device_train_batch_size": 2, **options}
    given = {"data": texts(), "sam": {"rho": RHO, "m": m}}
    trainer = tiny.trained(SAMTrainer, folder / "out", as_tiny(model), **given, **options)
    return whole(trainer.model), trainer.sam.steps_done


def llama():
    """Whose normalization is in float32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.LlamaConfig(**sizes, **tokens, max_position_embeddings=32)
    return as_tiny(transformers.LlamaForCausalLM(config).double())


def as_tiny(model):
    """With the loss of the tiny models."""
    model.loss_function, model.loss_type = tiny.causal_loss, "ForCausalLM"
    return model


def scenarios(folder, device):
    """What each process runs, by name."""
    found, on_cpu = {}, device == "cpu"
    for cut, m in CUTS.items():
        for name, options in LOOPS.items():
            found[f"loop, {name}, {cut}"] = partial(loop, m, on_cpu=on_cpu, **options)
        for name, options in TRAINERS.items():
            found[f"{name}, {cut}"] = partial(by_trainer, folder / "out", m, on_cpu=on_cpu, **options)
        for name, options in LOADED.items():
            found[f"loaded, {name}, {cut}"] = partial(loaded, folder, m, on_cpu=on_cpu, **options)
    return {**found, "resumed": partial(resumed, folder / "kept", on_cpu=on_cpu)}


GPUS = pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason=f"accelerate shards on {WORLD} GPUs")


@pytest.fixture(
    scope="module", params=[pytest.param("cpu", marks=pytest.mark.stress), pytest.param("cuda", marks=GPUS)]
)
def ranks(request, tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("accelerate")
    llama().save_pretrained(folder / "llama")
    command = [*TORCHRUN, "tests.sam.sharded.test_accelerate", str(folder), request.param]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if request.param == "cpu" else {}
    return found_by_ranks([(command, hidden)], folder)


def check(ranks, name, expected, *, steps, tol=1e-12):
    for weights, done in of_all(ranks, name):
        assert relative_error(weights, expected) < tol
        assert done == steps


@pytest.mark.parametrize(("name", "cut"), [*product(LOOPS, CUTS)])
def test_loop_with_an_accelerator_is_that_of_one_process(ranks, name, cut):
    steps = EPOCHS * EXAMPLES // BATCH // WORLD // LOOPS[name].get("accumulate", 1)
    check(ranks, f"loop, {name}, {cut}", of_loop(CUTS[cut], **LOOPS[name]), steps=steps)


@pytest.mark.parametrize(("name", "cut"), [*product(TRAINERS, CUTS)])
def test_trainers_steps_weight_labels_that_count_alike_in_all_ranks(ranks, name, cut):
    check(ranks, f"{name}, {cut}", of_trainer(cut, **TRAINERS[name])[0], steps=3)


@pytest.mark.parametrize(("name", "cut"), [*product(LOADED, CUTS)])
def test_model_that_was_loaded_in_shards_makes_the_same_steps(ranks, name, cut):
    expected = of_trainer(cut, model=llama(), **LOADED[name])[0]
    check(ranks, f"loaded, {name}, {cut}", expected, steps=3, tol=1e-6)


def test_trainer_resumes_identically(ranks):
    for weights, steps, in_one_go in of_all(ranks, "resumed"):
        assert steps == 4
        assert [*map(bits, weights)] == [*map(bits, in_one_go)]


if __name__ == "__main__":
    work(scenarios(Path(sys.argv[1]), sys.argv[2]), os.environ["LOCAL_RANK"], sys.argv[1])
    torch.distributed.destroy_process_group()
