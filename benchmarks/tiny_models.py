"""Tiny models of ``transformers`` and ``diffusers`` with random weights, and a batch for each.

Where a model takes an attention mask, half of its rows are padded, at different places.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, LENGTH, WORDS, WIDTH = 8, 10, 200, 64
BOTH = ("sdpa", "eager")
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A model, its loss, and what is expected of it.

    Attributes:
        make: Makes the model with an implementation of attention.
        batch: Makes the batch, a tensor of ``B`` rows for each argument.
        attentions: Implementations of attention that it has.
        m: Examples of a group.
        refused: Why it cannot be run at once; empty where it must be.
        most_error: How far it may be off.
        advised: What the user is told besides; empty where nothing is.
        loss: The loss of a model and some rows.
    """

    make: Callable[[str], nn.Module]
    batch: Callable[[], Batch]
    attentions: tuple[str, ...] = BOTH
    m: int = 1
    refused: str = ""
    most_error: float = 1e-10
    advised: str = ""
    loss: Callable[[nn.Module, Batch], Tensor] = lambda model, batch: model(**batch).loss


def _made(
    library: str, name: str, attention: str, options: dict[str, object], dtype: torch.dtype
) -> nn.Module:
    """The model in training, with one-dimensional parameters that are not all 0 or 1."""
    logging.getLogger(library).setLevel(logging.ERROR)
    torch.manual_seed(0)
    kind = getattr(import_module(library), name)
    if library == "diffusers":
        model = kind(**options)
        _set_attention(model, attention)
    else:
        model = kind(kind.config_class(attn_implementation=attention, **options))
    for layer in model.modules():
        if hasattr(layer, "dropout_prob"):  # of class labels, in DiT
            layer.dropout_prob = 0.0
    with torch.no_grad():
        for p in model.to(dtype).parameters():
            if p.dim() == 1:
                p.add_(0.02 * torch.randn_like(p))
    return model.train()


def _set_attention(model: nn.Module, attention: str) -> None:
    processors = import_module("diffusers.models.attention_processor")
    kind = {"sdpa": processors.AttnProcessor2_0, "eager": processors.AttnProcessor}[attention]
    for layer in model.modules():
        if isinstance(layer, processors.Attention):
            layer.set_processor(kind())


def _of(
    name: str, batch: Callable[[], Batch], library: str = "transformers", **options: object
) -> Architecture:
    """The architecture of a class; what it says of itself is among the options."""
    said = {k: options.pop(k) for k in _SAID if k in options}
    dtype = options.pop("dtype", torch.float64)
    return Architecture(partial(_made, library, name, options=options, dtype=dtype), batch, **said)


_SAID = ("attentions", "m", "refused", "most_error", "advised", "loss")

# Batches


def _draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(*, padded: bool = True) -> Batch:
    """Tokens, and a mask of what is no padding."""
    ids = torch.randint(5, WORDS, (B, LENGTH), generator=_draws())
    mask = torch.ones_like(ids)
    for row in range(1, B, 2) if padded else ():
        mask[row, LENGTH - 1 - row // 2 % 3 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def classes() -> Tensor:
    """One of two classes for each row."""
    return torch.arange(B) % 3 % 2


def causal(*, padded: bool = True) -> Batch:
    """Each token is to be told from those before it; of padding and of the first two nothing is."""
    batch = words(padded=padded)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :2] = -100
    return batch | {"labels": labels}


def masked() -> Batch:
    """Every second token is to be told."""
    batch = causal()
    batch["labels"][:, ::2] = -100
    batch["labels"][:, 1] = batch["input_ids"][:, 1]
    return batch


def classified() -> Batch:
    """Rows of tokens with a class each."""
    return words() | {"labels": classes()}


def packed() -> Batch:
    """Several texts in a row, told apart by their positions."""
    start = torch.arange(B)[:, None] % 4 + 2
    place = torch.arange(LENGTH).expand(B, LENGTH)
    position = torch.where(place < start, place, place - start)
    ids = words(padded=False)["input_ids"]
    return {"input_ids": ids, "position_ids": position, "labels": ids.masked_fill(position == 0, -100)}


def translated() -> Batch:
    """Tokens to be told from other tokens."""
    labels = torch.randint(5, WORDS, (B, 6), generator=_draws(1))
    for row in range(B):
        labels[row, 3 + row % 4 :] = -100
    return words() | {"labels": labels}


def images(size: int = 32) -> Batch:
    """Images with a class each."""
    pixels = torch.randn(B, 3, size, size, generator=_draws(), dtype=torch.float64)
    return {"pixel_values": pixels, "labels": classes()}


def segmented() -> Batch:
    """Images with a class for each pixel, some of them to be left out."""
    labels = torch.randint(0, 2, (B, 64, 64), generator=_draws(1))
    labels[:, :5] = 255
    return images(64) | {"labels": labels}


def captioned() -> Batch:
    """Images with texts; every text has its end, token 199."""
    batch = words()
    batch["input_ids"][torch.arange(B), batch["attention_mask"].sum(1) - 1] = 199
    return batch | {"pixel_values": images()["pixel_values"]}


def spoken() -> Batch:
    """Spectra, and what was said."""
    spectra = torch.randn(B, 20, 40, generator=_draws(), dtype=torch.float64)
    return {"input_features": spectra, "labels": translated()["labels"]}


def waves(labels: Callable[[], Tensor]) -> Batch:
    """Sounds, with ``labels``."""
    return {
        "input_values": torch.randn(B, 800, generator=_draws(), dtype=torch.float64),
        "labels": labels(),
    }


def letters() -> Tensor:
    """What was said, in letters."""
    found = torch.randint(5, 25, (B, 4), generator=_draws(1))
    found[1::2, 2:] = -100
    return found


def noised(**more: Callable[[], Tensor]) -> Batch:
    """Images with noise of some time, and the noise."""
    image, noise = torch.randn(2, B, 2, 8, 8, generator=_draws(), dtype=torch.float64)
    return {"sample": image, "noise": noise, "timestep": 100 * torch.arange(B)} | {
        name: make() for name, make in more.items()
    }


def contrasted(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of pairs of images and texts."""
    found: Tensor = model(**batch, return_loss=True).loss
    return found


def of_noise(model: nn.Module, batch: Batch, first: str = "sample") -> Tensor:
    """How far off the noise is that a model finds."""
    given = {first if k == "sample" else k: t for k, t in batch.items() if k != "noise"}
    return F.mse_loss(model(**given).sample, batch["noise"])


def of_image(model: nn.Module, batch: Batch) -> Tensor:
    """How far off an image is that went through an autoencoder, and its latent's distance to the prior."""
    latent = model.encode(batch["sample"]).latent_dist
    decoded = model.decode(latent.mode()).sample
    return F.mse_loss(decoded, batch["sample"]) + 1e-3 * latent.kl().mean()


# Options

_layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
_sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH} | _layers
_ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_decoder = {"vocab_size": WORDS, "num_key_value_heads": 2, "max_position_embeddings": WIDTH} | _sizes | _ends
_own_heads = {"head_dim": 16} | _decoder
_dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_encoder = {"vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 0} | _sizes | _dry
_vision = {"image_size": 32, "patch_size": 8} | _sizes
_experts = {"num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
_halves = {
    **{"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "vocab_size": WORDS},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
}
_disentangled = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]} | _encoder
_waves = {
    **{"vocab_size": 32, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0},
    **{"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0},
    **{"final_dropout": 0.0, "mask_time_prob": 0.0, "apply_spec_augment": False, "pad_token_id": 0},
} | _sizes
_unet = {
    **{"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "norm_num_groups": 4},
    "block_out_channels": (16, 32),
}
_text = {"vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 0} | _sizes

_by_shape = "a result whose shape depends on the data, by {}"
_alone = ("eager",)
_on_batch_norm = "m = 1 normalizes each example by itself in the batch norm"
_unets = partial(_of, library="diffusers", loss=of_noise)
_mixtral = partial(
    _of,
    "MixtralForCausalLM",
    causal,
    **{"num_local_experts": 4, "num_experts_per_tok": 2} | _decoder,
)

ARCHITECTURES = {
    # Decoders
    "llama": _of("LlamaForCausalLM", causal, **_decoder),
    "llama, tied": _of("LlamaForCausalLM", causal, tie_word_embeddings=True, **_decoder),
    "llama, packed": _of("LlamaForCausalLM", packed, **_decoder),
    "qwen2": _of("Qwen2ForCausalLM", causal, **_decoder),
    "qwen3": _of("Qwen3ForCausalLM", causal, **_own_heads),
    "mistral": _of("MistralForCausalLM", causal, sliding_window=6, **_own_heads),
    "gemma": _of("GemmaForCausalLM", causal, **_own_heads),
    "gemma2": _of("Gemma2ForCausalLM", causal, attentions=_alone, sliding_window=6, **_own_heads),
    "gemma3": _of("Gemma3ForCausalLM", causal, sliding_window=6, **_own_heads),
    "gpt2": _of(
        "GPT2LMHeadModel",
        causal,
        **{"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64},
        **{"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": _of("GPTNeoXForCausalLM", causal, vocab_size=WORDS, max_position_embeddings=64, **_sizes),
    "opt": _of(
        "OPTForCausalLM",
        causal,
        **{"vocab_size": WORDS, "ffn_dim": 128, "word_embed_proj_dim": WIDTH, "hidden_size": WIDTH},
        **{"max_position_embeddings": 64, "dropout": 0.0, "pad_token_id": 0} | _layers,
    ),
    "phi": _of(
        "PhiForCausalLM", causal, vocab_size=WORDS, max_position_embeddings=64, resid_pdrop=0.0, **_sizes
    ),
    "falcon": _of(
        "FalconForCausalLM",
        causal,
        **{"vocab_size": WORDS, "hidden_size": WIDTH, "alibi": False, "new_decoder_architecture": False},
        **_layers,
    ),
    "bloom": _of(
        "BloomForCausalLM",
        causal,
        attentions=_alone,
        refused="a custom autograd.Function, GeLUFunction",
        **{"vocab_size": WORDS, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4},
        **{"hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "mamba": _of(
        "MambaForCausalLM",
        causal,
        attentions=_alone,
        **{"vocab_size": WORDS, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2},
    ),
    "mamba2": _of(
        "Mamba2ForCausalLM",
        causal,
        attentions=_alone,
        **{"vocab_size": WORDS, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2},
        **{"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8, "expand": 2},
    ),
    # Mixtures of experts
    "mixtral": _mixtral(experts_implementation="batched_mm"),
    "mixtral, float32": _mixtral(experts_implementation="grouped_mm", dtype=torch.float32, most_error=1e-5),
    "mixtral, the router's loss": _mixtral(
        experts_implementation="batched_mm",
        output_router_logits=True,
        refused="scatter_add_, which writes to a tensor that all groups share",
    ),
    "mixtral, experts in turn": _mixtral(experts_implementation="eager", refused=_by_shape.format("nonzero")),
    "qwen2_moe": _of(
        "Qwen2MoeForCausalLM",
        causal,
        **{"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        **_decoder | _experts,
    ),
    "qwen3_moe": _of(
        "Qwen3MoeForCausalLM",
        causal,
        **{"num_experts": 4, "moe_intermediate_size": 32} | _own_heads | _experts,
    ),
    # Encoders and decoders
    "t5": _of(
        "T5ForConditionalGeneration",
        translated,
        **{"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        **{"dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0},
    ),
    "bart": _of(
        "BartForConditionalGeneration",
        translated,
        **{"max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
        **_halves | _ends,
    ),
    "whisper": _of(
        "WhisperForConditionalGeneration",
        spoken,
        **{"num_mel_bins": 20, "max_source_positions": 20, "max_target_positions": 32},
        **{"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
        **_halves | _ends,
    ),
    # Encoders
    "bert": _of("BertForSequenceClassification", classified, **_encoder),
    "bert, masked words": _of("BertForMaskedLM", masked, **_encoder),
    "roberta": _of("RobertaForSequenceClassification", classified, **_encoder),
    "distilbert": _of(
        "DistilBertForSequenceClassification",
        classified,
        **{"vocab_size": WORDS, "dim": WIDTH, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
        **{"max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0},
        seq_classif_dropout=0.0,
    ),
    "electra": _of("ElectraForSequenceClassification", classified, embedding_size=32, **_encoder),
    "modernbert": _of(
        "ModernBertForSequenceClassification",
        classified,
        **{"vocab_size": WORDS, "max_position_embeddings": 64, "local_attention": 6, "cls_token_id": 1},
        **{"sep_token_id": 2} | _sizes | _ends,
    ),
    "deberta": _of(
        "DebertaForSequenceClassification",
        classified,
        attentions=_alone,
        refused=_by_shape.format("nonzero"),
        **_disentangled,
    ),
    "deberta_v2": _of(
        "DebertaV2ForSequenceClassification",
        classified,
        attentions=_alone,
        refused=_by_shape.format("nonzero"),
        **_disentangled,
    ),
    # Images
    "vit": _of("ViTForImageClassification", images, **_vision | _dry),
    "deit": _of("DeiTForImageClassification", images, **_vision | _dry),
    "dinov2": _of("Dinov2ForImageClassification", images, mlp_ratio=2, **_vision),
    "beit": _of("BeitForImageClassification", images, drop_path_rate=0.0, **_vision | _dry),
    "swin": _of(
        "SwinForImageClassification",
        images,
        **{"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]},
        **{"window_size": 4, "drop_path_rate": 0.0} | _dry,
    ),
    "convnext": _of(
        "ConvNextForImageClassification",
        images,
        attentions=_alone,
        **{"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "drop_path_rate": 0.0},
    ),
    "resnet": _of(
        "ResNetForImageClassification",
        images,
        attentions=_alone,
        advised=_on_batch_norm,
        **{"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    "segformer": _of(
        "SegformerForSemanticSegmentation",
        segmented,
        advised=_on_batch_norm,
        **{"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32]},
        **{"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
        **{"decoder_hidden_size": 32, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0} | _dry,
    ),
    # Images with texts
    "clip": _of(  # one pair alone has nothing to be contrasted with
        "CLIPModel",
        captioned,
        m=2,
        loss=contrasted,
        text_config={"eos_token_id": 199, "bos_token_id": 1} | _text,
        vision_config=_vision,
        projection_dim=32,
    ),
    "siglip": _of(
        "SiglipModel",
        captioned,
        loss=contrasted,
        text_config={"projection_size": WIDTH} | _text,
        vision_config=_vision,
    ),
    # Sounds
    "wav2vec2": _of(
        "Wav2Vec2ForSequenceClassification",
        partial(waves, classes),
        **{"num_labels": 2, "classifier_proj_size": 32} | _waves,
    ),
    "wav2vec2, ctc": _of(
        "Wav2Vec2ForCTC",
        partial(waves, letters),
        refused=_by_shape.format("masked_select"),
        **{"ctc_loss_reduction": "mean"} | _waves,
    ),
    # Diffusion
    "UNet2D": _unets(
        "UNet2DModel",
        noised,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **_unet,
    ),
    "UNet2D, conditional": _unets(
        "UNet2DConditionModel",
        partial(
            noised,
            encoder_hidden_states=lambda: torch.randn(B, 5, 16, generator=_draws(2), dtype=torch.float64),
        ),
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **_unet,
    ),
    "DiT": _of(
        "DiTTransformer2DModel",
        partial(noised, class_labels=lambda: torch.arange(B) % 5),
        library="diffusers",
        loss=partial(of_noise, first="hidden_states"),
        **{"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 2, "num_layers": 2},
        **{"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
    ),
    "AutoencoderKL": _of(
        "AutoencoderKL",
        noised,
        library="diffusers",
        loss=of_image,
        **{"in_channels": 2, "out_channels": 2, "latent_channels": 2, "norm_num_groups": 4},
        **{"block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
}
