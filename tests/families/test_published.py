"""Configs as their publishers wrote them, years and versions apart, are understood, and mean what the papers say."""

import json
from dataclasses import replace
from typing import Any

import pytest

from qkv.cli.known import FOLDER
from qkv.families.family import find
from qkv.spec import (
    RMS,
    Alibi,
    Attention,
    Causal,
    Classify,
    Embed,
    Full,
    Gated,
    LayerNorm,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LMHead,
    Model,
    Plain,
    RelativeBias,
    Rotary,
    Sinusoidal,
    States,
    Window,
    Yarn,
)

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
STARCODER = {
    "activation_function": "gelu", "architectures": ["GPTBigCodeForCausalLM"], "attention_softmax_in_fp32": True,
    "multi_query": True, "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0,
    "inference_runner": 0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "max_batch_size": None,
    "max_sequence_length": None, "model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_inner": 24576,
    "n_layer": 40, "n_positions": 8192, "pad_key_length": True, "pre_allocate_kv_cache": False, "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "torch_dtype": "float32", "use_cache": True, "validate_runner_input": True,
    "vocab_size": 49152,
}  # fmt: skip
BLOOM = {
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
    "architectures": ["BloomForCausalLM"], "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 1024,
    "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1,
    "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False, "use_cache": True, "vocab_size": 250880,
}  # fmt: skip
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
LLAMA_1 = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02, "max_sequence_length": 2048,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.27.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
GEMMA = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
    "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.38.0.dev0",
    "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA_2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608, "initializer_range": 0.02,
    "intermediate_size": 36864, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 32,
    "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0, "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
    "torch_dtype": "float32", "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True,
    "vocab_size": 262144,
}  # fmt: skip
QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN_3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip


def read(config: dict[str, Any]) -> tuple[Model, Attention]:
    model = find(config["model_type"]).spec(config)
    mixer = model.decoder.blocks[0].mixer
    assert isinstance(mixer, Attention)
    return model, mixer


def test_gpt2() -> None:
    model, mixer = read(GPT2)
    assert (model.decoder.embed.position, mixer.position, mixer.kv_heads) == (Learned(1024), None, 12)
    assert model.decoder.blocks[0].norm == LayerNorm(1e-5)
    assert model.head == LMHead(tied=True)


def test_pythia() -> None:
    model, mixer = read(PYTHIA)
    assert mixer.position == Rotary(dims=16)
    assert model.decoder.blocks[0].place == "parallel"


def test_starcoder() -> None:
    model, mixer = read(STARCODER)
    assert (mixer.heads, mixer.kv_heads, model.context) == (48, 1, 8192)


def test_bloom() -> None:
    model, mixer = read(BLOOM)
    assert (mixer.position, model.dim, model.context) == (Alibi(), 1024, 2048)
    assert model.decoder.embed.norm == LayerNorm(1e-5)


def test_llama() -> None:
    assert read(SMOLLM2)[1].position == Rotary(base=100000.0)
    assert read(SMOLLM2)[1].kv_heads == 3
    scaled = Rotary(base=500000.0, scaling=Llama3Scaling(32.0, low=1.0, high=4.0, length=8192))
    assert read(LLAMA_3_2)[1].position == scaled
    assert read(LLAMA_1)[0].context == 2048


def test_mistral() -> None:
    assert read(MISTRAL)[1].mask == Window(4096)
    assert read({k: v for k, v in MISTRAL.items() if k != "sliding_window"})[1].mask == Window(4096)
    assert read({**MISTRAL, "sliding_window": None})[1].mask == Causal()


def test_gemma() -> None:
    model, mixer = read(GEMMA)
    assert (model.decoder.embed.scale, model.decoder.norm, mixer.head_dim) == (
        2048**0.5,
        RMS(1e-6, one_plus=True),
        None,
    )
    assert model.decoder.blocks[0].mlp.activation == "gelu_tanh"  # type: ignore[attr-defined]
    assert model.head.tied  # type: ignore[attr-defined]


def test_gemma2() -> None:
    model, mixer = read(GEMMA_2)
    assert [type(block.mixer.mask) for block in model.decoder.blocks] == [Window, Causal]  # type: ignore[attr-defined]
    assert (mixer.scale, mixer.softcap, mixer.head_width(model.dim)) == (1 / 12, 50.0, 128)
    assert model.head == LMHead(tied=True, softcap=30.0)


def test_gemma3() -> None:
    model, local = read(GEMMA_3)
    assert (len(model.decoder.blocks), model.decoder.layers) == (6, 26)
    assert (local.mask, local.position) == (Window(512), Rotary())
    last = model.decoder.blocks[5].mixer
    assert isinstance(last, Attention)
    assert (last.mask, last.position) == (Causal(), Rotary(base=1e6, scaling=LinearScaling(8.0)))
    assert local.qk_norm == RMS(1e-6, one_plus=True)
    assert local.scale is None


def test_qwen() -> None:
    model, mixer = read(QWEN_2_5)
    assert (mixer.qkv_bias, mixer.out_bias, len(model.decoder.blocks)) == (True, False, 1)
    assert mixer.position == Rotary(base=1e6, scaling=Yarn(4.0, length=32768))
    model, mixer = read(QWEN_3)
    assert (mixer.head_dim, mixer.qk_norm, mixer.qkv_bias) == (128, RMS(1e-6), False)


def known(name: str) -> Model:
    """A published config that travels with the package."""
    config = json.loads((FOLDER / f"{name}.json").read_text())
    return find(config["model_type"]).spec(config)


def test_t5() -> None:
    small, flan = known("t5-small"), known("flan-t5-base")
    (block,) = small.decoder.blocks
    mixer = block.mixer
    assert isinstance(mixer, Attention)
    assert (mixer.scale, mixer.mask, mixer.qkv_bias, mixer.head_width(512)) == (1.0, Causal(), False, 64)
    assert block.cross == replace(mixer, mask=Full())
    assert (block.norm, block.place, block.mlp) == (RMS(1e-6), "pre", Plain(2048, "relu", dropout=0.1))
    assert small.encoder.position == RelativeBias(32, 128, both_ways=True)
    assert small.decoder.position == RelativeBias(32, 128)
    assert (small.start, small.context, small.head) == (0, 512, LMHead(tied=True, scale=512**-0.5))
    assert flan.head == LMHead(tied=False)
    assert flan.encoder.blocks[0].mlp == Gated(2048, "gelu_tanh", dropout=0.1)


def test_bart() -> None:
    base, cnn, mnli = known("bart-base"), known("bart-large-cnn"), known("bart-large-mnli")
    assert base.encoder.embed == Embed(Learned(1024, offset=2), norm=LayerNorm(1e-5), dropout=0.1)
    assert (base.encoder.blocks[0].place, base.encoder.norm, base.head) == ("post", None, States())
    assert (cnn.start, cnn.head, cnn.vocab) == (2, LMHead(tied=True, bias=True), 50264)
    assert mnli.head == Classify(("contradiction", "neutral", "entailment"), pick="last", hidden="tanh")


def test_marian_is_the_transformer_of_2017() -> None:
    model = known("opus-mt-en-de")
    assert model.encoder.embed == Embed(Sinusoidal(halves=True), scale=512**0.5, dropout=0.1)
    assert (model.decoder.blocks[0].place, model.decoder.norm, model.one_table) == ("post", None, True)
    assert (model.encoder.layers, model.decoder.layers, model.start) == (6, 6, 58100)
    assert model.decoder.blocks[0].mlp == Plain(2048, "silu", bias=True)


def test_pegasus_and_mbart_norm_first() -> None:
    pegasus, mbart = known("pegasus-xsum"), known("mbart-large-cc25")
    for model in (pegasus, mbart):
        assert (model.encoder.blocks[0].place, model.encoder.norm, model.decoder.norm) == (
            "pre",
            LayerNorm(1e-5),
            LayerNorm(1e-5),
        )
        assert model.encoder.embed.scale == 32.0
    assert (pegasus.encoder.embed.norm, mbart.encoder.embed.norm) == (None, LayerNorm(1e-5))
    assert (pegasus.start, mbart.start) == (0, None)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_each_that_travels_with_the_package_is_written_back(name: str) -> None:
    model = known(name)
    assert find(model.family).spec(find(model.family).config(model)) == model


@pytest.mark.parametrize(
    "config", [v for v in list(globals().values()) if isinstance(v, dict) and "model_type" in v],
    ids=lambda c: f"{c['model_type']} {c['vocab_size']}",
)  # fmt: skip
def test_each_is_written_back_as_the_same_model(config: dict[str, Any]) -> None:
    family = find(config["model_type"])
    assert family.spec(family.config(family.spec(config))) == family.spec(config)
