"""A language model of a few hundred weights in float64, texts for it, and SAM of it by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .by_hand import sam_by_hand

transformers = pytest.importorskip("transformers")

VOCABULARY, TEXTS = 12, 12


def causal_loss(logits, labels, num_items_in_batch=None, **_):
    """That of transformers, which is in float32 whatever the model."""
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / ((labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def language_model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 1}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, pad_token_id=0, **sizes, **no_dropout, **options)
    model = transformers.GPT2LMHeadModel(config).double()
    model.loss_function = causal_loss
    model.loss_type = "ForCausalLM"  # by which the trainer knows that no first token is predicted
    return model


def texts():
    """Of three to six tokens, of which a different number is predicted."""
    draws = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, VOCABULARY, (3 + i % 4,), generator=draws).tolist() for i in range(TEXTS)]
    return [
        {"input_ids": row, "labels": [-100] * (1 + i % 2) + row[1 + i % 2 :]} for i, row in enumerate(rows)
    ]


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ends = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        key: torch.tensor([row[key] + [end] * (longest - len(row[key])) for row in rows])
        for key, end in ends.items()
    }


QUIET = {
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "max_steps": 3,
}

ONE_STEP = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
"""What the weights lose is the gradient."""


def trained(
    cls,
    folder,
    model=None,
    sam=None,
    *,
    config=None,
    data=None,
    collator=padded,
    given=None,
    resume=None,
    **options,
):
    """A trainer after training, with SAM if ``sam`` is given."""
    args = (config or transformers.TrainingArguments)(str(folder), **{**QUIET, **options})
    trainer = cls(
        model=language_model() if model is None else model,
        args=args,
        train_dataset=texts() if data is None else data,
        **({} if collator is None else {"data_collator": collator}),
        **({} if sam is None else {"sam": sam}),
        **(given or {}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return [p.detach() for p in trainer.model.parameters()]


def moved(trainer, start=None):
    """What :data:`ONE_STEP` took from the weights of a new model."""
    before = (language_model() if start is None else start).parameters()
    return [p.detach() - q for p, q in zip(before, weights(trainer), strict=True)]


def of_texts(rows):
    """Loss of some texts, each by itself and without padding, and the number of tokens it is the mean of."""
    count = sum(label != -100 for row in rows for label in row["labels"][1:])

    def loss(model: nn.Module):
        total = 0.0
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return total / count

    return loss, count


def gradient_by_hand(model, groups, rho):
    return sam_by_hand(model, *zip(*map(of_texts, groups), strict=True), rho)
