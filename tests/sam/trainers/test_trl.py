"""The trainers of trl by the mixin. Their fused head is computed in float32, whatever the model."""

import functools
import itertools

import pytest
import torch
from torch.nn import functional as F

from ..naive import relative_error
from .by_hand import sam_by_hand

pytest.importorskip("accelerate")
pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("lowland.sam.trainers.huggingface")

from .tiny import ONE_STEP, VOCABULARY, language_model, moved, trained, weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")

FLOAT32 = 1e-5
LETTERS = "abcdefghij"


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Says that it is a test, and asks no server anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def trl():
    import datasets
    import trl

    datasets.disable_progress_bars()
    return trl


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *LETTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def tokens(lengths, seed):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (n,), generator=draws).tolist() for n in lengths]


def text(ids):
    return " ".join(LETTERS[i - 2] for i in ids)


TEXTS = tokens([3 + i % 4 for i in range(12)], 1)
PROMPTS = tokens([2 + i % 2 for i in range(8)], 2)
CHOSEN, REJECTED = tokens([1 + i % 3 for i in range(8)], 3), tokens([1 + (i + 1) % 4 for i in range(8)], 4)


class Kit:
    """A trainer of trl with its config and data, plain or with SAM."""

    def __init__(self, trl, tokenizer, kind):
        from datasets import Dataset

        self.plain = getattr(trl, f"{kind}Trainer")
        self.sharp = type(f"SAM{kind}", (huggingface.SAMTrainerMixin, self.plain), {})
        self.config = getattr(trl, f"{kind}Config")
        self.given = {"processing_class": tokenizer}
        self.model = language_model
        if kind == "SFT":
            self.data = Dataset.from_list([{"text": text(ids)} for ids in TEXTS])
        else:
            answers = zip(map(text, PROMPTS), map(text, CHOSEN), map(text, REJECTED), strict=True)
            self.data = Dataset.from_list(
                [{"prompt": f"{p} ", "chosen": good, "rejected": bad} for p, good, bad in answers]
            )
        if kind == "DPO":
            self.given["ref_model"] = language_model(seed=3)
        if kind == "Reward":
            self.model = scorer

    def trained(self, folder, sam=None, **options):
        fixed = {"logging_strategy": "steps", "logging_steps": 1, "bf16": False}
        return trained(
            self.plain if sam is None else self.sharp,
            folder,
            self.model(),
            sam,
            config=self.config,
            data=self.data,
            collator=None,
            given=self.given,
            **{**fixed, **options},
        )


def scorer():
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "num_labels": 1}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, **sizes, **none)
    return transformers.GPT2ForSequenceClassification(config).double()


KINDS = ["SFT", "DPO", "Reward"]


@pytest.fixture(scope="module", params=KINDS)
def kit(trl, tokenizer, request):
    return Kit(trl, tokenizer, request.param)


@pytest.fixture(scope="module")
def sft(trl, tokenizer):
    return Kit(trl, tokenizer, "SFT")


def logged(trainer, step=0):
    row = trainer.state.log_history[step]
    return {key: value for key, value in row.items() if key not in {"grad_norm", "loss"}}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_radius_zero_is_the_trainer_and_logs_the_same(kit, accumulated, tmp_path):
    options = {"gradient_accumulation_steps": accumulated, "max_steps": 2}
    plain = kit.trained(tmp_path, **options)
    for m in (None, 1, 2):
        sharp = kit.trained(tmp_path, {"rho": 0.0, "m": m, "engine": "loop"}, **options)
        assert relative_error(weights(sharp), weights(plain)) < FLOAT32
        if m is None and accumulated == 1:
            assert all(map(torch.equal, weights(sharp), weights(plain)))
        rows = [t.state.log_history[0] for t in (sharp, plain)]
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
        if m is None:
            assert logged(sharp) == logged(plain)
        assert rows[0]["num_tokens"] == rows[1]["num_tokens"]


def test_metrics_are_those_at_the_weights_once(kit, tmp_path):
    plain = kit.trained(tmp_path, max_steps=2)
    sharp = kit.trained(tmp_path, {"rho": 0.3, "steps": 2}, max_steps=2)
    assert logged(sharp) == logged(plain)
    assert logged(sharp, 1)["num_tokens"] == logged(plain, 1)["num_tokens"]
    assert logged(sharp, 1) != logged(plain, 1)
    assert relative_error(weights(sharp), weights(plain)) > 1e-3


def test_metrics_of_groups_are_those_of_so_many_batches(kit, tmp_path):
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    plain = kit.trained(tmp_path, max_steps=1, **small)
    sharp = kit.trained(tmp_path, {"rho": 0.3, "m": 1, "engine": "loop"}, max_steps=1)
    found, expected = logged(sharp), logged(plain)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=FLOAT32, abs=1e-7)


def sft_loss(model, ids):
    ids = torch.tensor([[*ids, 1]])
    logits = model(input_ids=ids).logits[0, :-1]
    return F.cross_entropy(logits, ids[0, 1:])


def log_probability(model, prompt, answer):
    ids = torch.tensor([[*prompt, *answer, 1]])
    found = model(input_ids=ids).logits[0, :-1].log_softmax(1)
    return found.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


def dpo_loss(model, i, *, reference, beta=0.1):
    def ratio(answer):
        with torch.no_grad():
            at_reference = log_probability(reference, PROMPTS[i], answer)
        return log_probability(model, PROMPTS[i], answer) - at_reference

    return -F.logsigmoid(beta * (ratio(CHOSEN[i]) - ratio(REJECTED[i])))


def reward_loss(model, i):
    def reward(answer):
        return model(input_ids=torch.tensor([[*PROMPTS[i], *answer, 1]])).logits[0, 0]

    return -F.logsigmoid(reward(CHOSEN[i]) - reward(REJECTED[i]))


@pytest.mark.parametrize("m", [None, 1, 2])
def test_step_is_that_of_sam_by_hand(kit, m, tmp_path):
    """Text by text, or pair by pair."""
    trainer = kit.trained(tmp_path, {"rho": 0.3, "m": m, "engine": "loop"}, **ONE_STEP)
    if kit.config.__name__ == "SFTConfig":
        losses = [functools.partial(sft_loss, ids=ids) for ids in TEXTS[:4]]
        masses = [len(ids) for ids in TEXTS[:4]]
    elif kit.config.__name__ == "DPOConfig":
        losses = [functools.partial(dpo_loss, i=i, reference=language_model(seed=3).eval()) for i in range(4)]
        masses = [1] * 4
    else:
        losses, masses = [functools.partial(reward_loss, i=i) for i in range(4)], [1] * 4
    size = m or 4
    groups = [range(i, i + size) for i in range(0, 4, size)]

    def of_group(group):
        total = sum(masses[i] for i in group)
        return lambda model: sum(masses[i] / total * losses[i](model) for i in group)

    found, shares = map(of_group, groups), [sum(masses[i] for i in group) for group in groups]
    expected = sam_by_hand(kit.model(), found, shares, 0.3)
    assert relative_error(moved(trainer, kit.model()), expected) < FLOAT32


def test_packed_texts_are_examples(sft, tmp_path):
    """Of rows with several texts, one behind the other; the packing may change their order."""
    packing = {"packing": True, "max_length": 12, "per_device_train_batch_size": 2}
    plain = sft.trained(tmp_path, **ONE_STEP, **packing)
    batch = next(iter(plain.get_train_dataloader()))
    ends = [*batch["cu_seq_lens_q"].tolist()]
    rows = [batch["input_ids"][0, a:b].tolist() for a, b in itertools.pairwise(ends)]
    assert len(rows) >= 3

    def of_row(ids):
        return lambda model: F.cross_entropy(
            model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:])
        )

    for rho in (0.0, 0.3):
        sharp = sft.trained(tmp_path, {"rho": rho, "m": 1, "engine": "loop"}, **ONE_STEP, **packing)
        masses = [len(ids) - 1 for ids in rows]
        expected = sam_by_hand(language_model(), map(of_row, rows), masses, rho)
        assert relative_error(moved(sharp), expected) < FLOAT32
        if rho == 0.0:
            assert relative_error(moved(sharp), moved(plain)) < FLOAT32
        assert logged(sharp)["num_tokens"] == logged(plain)["num_tokens"]


def test_label_smoothing_and_losses_of_the_users_are_minimized(sft, tmp_path):
    for extra in ({"label_smoothing_factor": 0.2}, {"loss_type": "dft"}):
        plain = sft.trained(tmp_path, max_steps=1, **extra)
        sharp = sft.trained(tmp_path, {"rho": 0.0, "m": 1, "engine": "loop"}, max_steps=1, **extra)
        assert relative_error(weights(sharp), weights(plain)) < FLOAT32


def test_training_is_continued_identically(kit, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    sam = {"rho": 0.3, "m": 2, "engine": "loop"}
    whole = kit.trained(tmp_path, sam, **options)
    resumed = kit.trained(tmp_path, sam, resume=str(tmp_path / "checkpoint-1"), **options)
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.sam.steps_done == 2


def test_evaluation_is_the_trainers(kit, tmp_path):
    trainer = kit.trained(tmp_path, {"rho": 0.3}, max_steps=1)
    found = trainer.evaluate(kit.data.select(range(3)))
    trainer.__class__ = kit.plain
    expected = trainer.evaluate(kit.data.select(range(3)))
    timed = {key for key in found if "runtime" in key or "per_second" in key}
    assert {k: v for k, v in found.items() if k not in timed} == {
        k: v for k, v in expected.items() if k not in timed
    }


def experts():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        num_local_experts=3,
        num_key_value_heads=2,
        output_router_logits=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **sizes,
    )
    return transformers.MixtralForCausalLM(config)


def test_loss_of_a_router_counts_as_in_the_trainer_whatever_is_accumulated(trl, tokenizer, tmp_path):
    from datasets import Dataset

    kit = Kit(trl, tokenizer, "SFT")
    kit.model, kit.data = experts, Dataset.from_list([{"text": text(ids)} for ids in tokens([4] * 8, 5)])
    options = {**ONE_STEP, "gradient_accumulation_steps": 2, "router_aux_loss_coef": 1.0}
    plain, sharp = (kit.trained(tmp_path, sam, **options) for sam in (None, {"rho": 0.0}))
    assert relative_error(moved(sharp, experts()), moved(plain, experts())) < FLOAT32
    without = kit.trained(tmp_path, None, **{**options, "router_aux_loss_coef": 0.0})
    assert relative_error(moved(without, experts()), moved(plain, experts())) > 1e-2
