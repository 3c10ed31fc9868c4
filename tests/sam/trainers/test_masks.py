"""Masks that are built whether or not something is padded."""

import pytest
import torch

pytest.importorskip("accelerate")
masks = pytest.importorskip("transformers.masking_utils")

from lowland.sam.trainers.masks import always_built  # noqa: E402


def built():
    """The mask of two rows without padding, as models of transformers have it made."""
    make = masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    whole = torch.ones(2, 3, dtype=torch.bool)
    return make(batch_size=2, q_length=3, kv_length=3, attention_mask=whole, device=torch.device("cpu"))


def test_rows_without_padding_are_masked_inside_the_block_only():
    assert built() is None
    with always_built():
        assert torch.equal(built(), torch.ones(3, 3, dtype=torch.bool).tril().expand(2, 1, 3, 3))
        with always_built():
            assert built() is not None
        assert built() is not None
    assert built() is None


def test_function_is_what_it_was_after_an_error():
    before = masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(KeyError), always_built():
        raise KeyError
    assert masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is before


def test_function_of_the_users_own_is_asked_and_stays(monkeypatch):
    asked = []

    def own(*args, **kwargs):
        asked.append(kwargs["allow_is_causal_skip"])
        return masks.sdpa_mask(*args, **kwargs)

    monkeypatch.setitem(masks.ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", own)
    with always_built():
        assert built() is not None
    assert asked == [False]
    assert masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is own
