"""Peak memory of a step with SAM, as a multiple of plain training's, weights and Adam's state included.

    python benchmarks/memory.py
    python benchmarks/memory.py --regimes weights --kinds lora --engines batched

A llama of ``transformers`` in two regimes: *weights* dominate (few tokens for the width) or *activations* do.
Each cell is a process of its own that makes two steps: the peak is the most bytes that tensors hold in them,
what is kept from the first one included, above weights and Adam's state (two more of what is trained). The
optimizer's step itself is not counted. Bytes are those that torch allocates, so that neither the system's
allocator nor the load of the machine matters. In brackets is what a step leaves, gradients apart.
Kinds are float32, bfloat16 weights, activation checkpointing, LoRA, and combinations.
"""

import argparse
import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interleaved import held_over
from lowland import SAM

MIB = 2**20


@dataclass(frozen=True)
class Regime:
    """Sizes of a model and its batch."""

    hidden: int
    layers: int
    batch: int
    tokens: int


REGIMES = {"weights": Regime(512, 4, 4, 16), "activations": Regime(128, 4, 16, 256)}
KINDS = {
    "float32": (),
    "bfloat16": ("bfloat16",),
    "checkpointed": ("checkpointed",),
    "lora": ("lora",),
    "lora, checkpointed": ("lora", "checkpointed"),
}
ENGINES = ("loop", "batched")
GROUPS = (None, 2, 1)


def main() -> None:
    """Prints the table, or measures one cell of it."""
    arguments = _arguments()
    if arguments.cell:
        print(json.dumps(measured(*json.loads(arguments.cell))))
        return
    print(f"torch {torch.__version__}, CPU; multiples of plain training's total (in MiB)")
    heads = [f"{engine} m={'B' if m is None else m}" for engine in arguments.engines for m in GROUPS]
    print("| regime | kind | plain | " + " | ".join(heads) + " |\n" + "|---" * (3 + len(heads)) + "|")
    for regime in arguments.regimes:
        for kind in arguments.kinds:
            plain = in_a_process(regime, kind, None, None)
            row = [f"{plain['total'] / MIB:.0f}"]
            for engine in arguments.engines:
                for m in GROUPS:
                    found = in_a_process(regime, kind, engine, m)
                    row.append(
                        f"{found['total'] / plain['total']:.2f} ({found['kept'] / plain['total']:.2f})"
                    )
            print(f"| {regime} | {kind} | " + " | ".join(row) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process(*cell: Any) -> dict[str, int]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(regime: str, kind: str, engine: str | None, m: int | None) -> dict[str, int]:
    """Bytes: ``total`` of weights, Adam's state and a step's peak, and what is ``kept`` after it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = made(REGIMES[regime], KINDS[kind])
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, of_trained = (
        sum(p.numel() * p.element_size() for p in ps) for ps in (model.parameters(), trained)
    )
    step = stepping(model, REGIMES[regime], engine, m)

    def two_steps() -> None:
        step()
        for p in trained:
            p.grad = None
        gc.collect()
        step()

    peak, after = held_over(two_steps)
    return {"total": weights + 2 * of_trained + peak, "kept": after - of_trained}


def made(regime: Regime, options: tuple[str, ...]) -> Any:
    """A model from scratch."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=regime.hidden,
        intermediate_size=regime.hidden * 43 // 16,
        num_hidden_layers=regime.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).train()
    if "bfloat16" in options:
        model = model.to(torch.bfloat16)
    if "checkpointed" in options:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if "lora" in options:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        if "checkpointed" in options:
            model.enable_input_require_grads()
    return model


def stepping(model: Any, regime: Regime, engine: str | None, m: int | None) -> Callable[[], object]:
    """The gradient of a step: plain without an ``engine``."""
    ids = torch.randint(1000, (regime.batch, regime.tokens))
    batch = {"input_ids": ids, "labels": ids}

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss

    if engine is None:
        return lambda: loss(batch).backward()
    sam = SAM(model, rho=0.05, m=m, engine=engine)
    return lambda: sam.backward(loss, batch)


if __name__ == "__main__":
    main()
