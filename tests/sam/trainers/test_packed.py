"""Packed batches, all texts in one row of tokens: each text is an example."""

import itertools

import pytest
import torch

from ..naive import relative_error
from .by_hand import sam_by_hand

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
SAMTrainer = pytest.importorskip("lowland.sam.trainers.huggingface").SAMTrainer

from lowland.sam.trainers.layouts import Packed, in_pairs, out_of_pairs  # noqa: E402

from .tiny import (  # noqa: E402
    ONE_STEP,
    gradient_by_hand,
    language_model,
    moved,
    texts,
    trained,
    weights,
)

TEXTS = texts()
Flattening = transformers.DataCollatorWithFlattening
COLLATORS = {
    "positions": Flattening(),
    "bounds": Flattening(return_flash_attn_kwargs=True, return_seq_idx=True),
}


def by_hand(m, rho):
    """Of four texts, each by itself; the collators predict no first token."""
    size = m or 4
    return gradient_by_hand(language_model(), [TEXTS[i : min(i + size, 4)] for i in range(0, 4, size)], rho)


@pytest.mark.parametrize("m", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("name", COLLATORS)
def test_m_counts_texts_and_not_rows(name, m, tmp_path):
    sam = {"rho": 0.3, "m": m, "engine": "loop"}
    trainer = trained(SAMTrainer, tmp_path, sam=sam, collator=COLLATORS[name], **ONE_STEP)
    assert relative_error(moved(trainer), by_hand(m, 0.3)) < 1e-12
    assert relative_error(moved(trainer), by_hand(1 if m != 1 else None, 0.3)) > 1e-3


@pytest.mark.parametrize("m", [None, 1, 2])
def test_radius_zero_is_the_trainer(m, tmp_path):
    options = {"collator": COLLATORS["positions"], "gradient_accumulation_steps": 2}
    plain = trained(transformers.Trainer, tmp_path, **options)
    sharp = trained(SAMTrainer, tmp_path, sam={"rho": 0.0, "m": m, "engine": "loop"}, **options)
    assert relative_error(weights(sharp), weights(plain)) < 1e-10


@pytest.mark.usefixtures("untyped")
def test_engine_that_runs_texts_at_once_is_refused_by_name(tmp_path):
    sam = {"rho": 0.3, "m": 1, "engine": "batched"}
    with pytest.raises(RuntimeError, match=r"no tensor, '0\.packed sequences'"):
        trained(SAMTrainer, tmp_path, sam=sam, collator=COLLATORS["positions"], **ONE_STEP)


@pytest.mark.parametrize("name", COLLATORS)
def test_texts_that_are_cut_out_are_what_the_collator_makes_of_them(name):
    packed = Packed.of(COLLATORS[name](TEXTS[:5]))
    assert len(packed) == 5
    for first, last in ((0, 1), (1, 4), (4, 5), (0, 5)):
        found, expected = packed[first:last].inputs(), COLLATORS[name](TEXTS[first:last])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), key
    again = packed[1:4][1:3].inputs()["input_ids"]
    assert torch.equal(again, COLLATORS[name](TEXTS[2:4])["input_ids"])


def test_texts_are_told_by_their_number_where_there_are_no_positions():
    flat = Flattening(return_position_ids=False, return_seq_idx=True)(TEXTS[:3])
    packed = Packed.of(flat)
    assert [packed[i : i + 1].inputs()["input_ids"].shape[1] for i in range(len(packed))] == [3, 4, 5]


@pytest.mark.parametrize(
    "inputs",
    [
        COLLATORS["positions"](TEXTS[:1]),
        {"input_ids": torch.ones(1, 4), "labels": torch.ones(1, 4)},
        {"input_ids": torch.ones(2, 4), "position_ids": torch.tensor([[0, 1, 0, 1]] * 2)},
        {"pixel_values": torch.ones(1, 3, 4, 4)},
    ],
    ids=["one text", "no positions", "two rows", "no tokens"],
)
def test_other_batches_are_rows(inputs):
    assert Packed.of(inputs) is None


def test_a_row_that_is_padded_on_the_left_is_a_row():
    row = {
        "input_ids": torch.ones(1, 5, dtype=torch.long),
        "position_ids": torch.tensor([[1, 1, 0, 1, 2]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
    }
    assert Packed.of(row) is None


@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (3, 4), (1,)])
def test_entries_that_do_not_lie_along_the_tokens_are_refused(shape):
    batch = {**COLLATORS["positions"](TEXTS[:3]), "mask": torch.ones(shape)}
    with pytest.raises(
        ValueError, match=r"must have one entry for each of its 12 tokens, got shape .* 'mask'"
    ):
        Packed.of(batch)


def test_labels_that_the_text_before_would_predict_are_refused():
    batch = COLLATORS["positions"](TEXTS[:3])
    batch["labels"][0, 3] = 5
    with pytest.raises(ValueError, match="must be -100 where a sequence begins"):
        Packed.of(batch)


def test_pairs_are_cut_by_pairs():
    rows = torch.arange(12).reshape(6, 2)
    batch = {"input_ids": rows, "reference": torch.arange(3.0), "beta": 0.1}
    examples = in_pairs(batch)
    assert examples["pairs"]["input_ids"].tolist() == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert examples["each"]["reference"].shape == (3,)
    assert torch.equal(out_of_pairs(examples)["input_ids"], rows)
    second = {
        "pairs": {"input_ids": examples["pairs"]["input_ids"][1:2]},
        "each": {"reference": torch.tensor([1.0]), "beta": 0.1},
    }
    assert out_of_pairs(second)["input_ids"].tolist() == [[2, 3], [8, 9]]


class OfTexts(SAMTrainer):
    """The mean over texts of a loss without labels, of which each text of a row has one."""

    def compute_loss(self, model, inputs, *_, **__):
        logits = model(**inputs).logits[0]
        begins = [*(inputs["position_ids"][0] == 0).nonzero().flatten(), len(logits)]
        texts = itertools.pairwise(begins)
        return torch.stack([logits[a:b].square().mean() for a, b in texts]).mean()


@pytest.mark.parametrize("weight", [None, lambda inputs: inputs["input_ids"].shape[1]])
def test_texts_without_labels_count_alike_and_as_the_user_says(weight, tmp_path):
    def collate(rows):
        return {key: value for key, value in COLLATORS["positions"](rows).items() if key != "labels"}

    sam = {"rho": 0.3, "m": 2, "engine": "loop", "weight": weight}
    options = {"collator": collate, **ONE_STEP, "per_device_train_batch_size": 3}
    trainer = trained(OfTexts, tmp_path, sam=sam, **options)

    def of_group(group):
        def loss(model):
            logits = [model(input_ids=torch.tensor([row["input_ids"]])).logits for row in group]
            return torch.stack([found.square().mean() for found in logits]).mean()

        return loss

    groups = [TEXTS[:2], TEXTS[2:3]]
    tokens = [sum(len(row["input_ids"]) for row in group) for group in groups]
    expected = sam_by_hand(language_model(), map(of_group, groups), [2, 1] if weight is None else tokens, 0.3)
    assert relative_error(moved(trainer), expected) < 1e-12
