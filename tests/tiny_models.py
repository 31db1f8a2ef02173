"""Every text and image-text model type of transformers, built tiny from a shrunken default
config."""

import copy
import inspect

import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

MAPS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
}
MAX_PARAMETERS = 20_000_000

# The usual names of sizes in configs, and what they become.
SIZES = {
    32: """hidden_size d_model n_embd dim embed_dim embedding_size embedding_dim
        word_embed_proj_dim emb_dim encoder_hidden_size decoder_hidden_size backbone_hidden_size
        projection_dim out_hidden_size hidden_dim lru_width attention_hidden_size
        vision_hidden_size text_hidden_size model_dim output_dim width""",
    64: """intermediate_size d_ff ffn_dim n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size
        d_inner shared_expert_intermediate_size mlp_hidden_size expert_ffn_hidden_size
        intermediate_size_mlp prefix_intermediate_size block_ff_dim dense_intermediate_size""",
    48: """moe_intermediate_size shared_intermediate_size expert_intermediate_size expert_dim
        moe_shared_expert_intermediate_size""",
    2: """num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers depth num_experts_per_tok num_key_value_heads
        num_kv_heads num_selected_experts moe_topk moe_top_k num_experts_per_token top_k_experts
        moe_k topk_group n_group num_block_layers num_local_layers topk multi_query_group_num
        num_global_layers linear_num_key_heads num_key_value_heads_per_layer zero_expert_num
        layers encoder_num_hidden_layers decoder_num_hidden_layers""",
    4: """num_attention_heads n_head num_heads n_heads encoder_attention_heads
        decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts
        num_encoder_attention_heads num_decoder_attention_heads decoder_num_attention_heads
        encoder_num_attention_heads expert_num n_experts linear_num_value_heads linear_num_heads
        index_n_heads rotary_dim mamba_n_heads""",
    8: """head_dim attention_head_dim kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim
        d_kv global_head_dim qk_head_dim linear_key_head_dim linear_value_head_dim
        linear_head_dim attention_head_size hidden_size_per_layer_input kv_lora_rank q_lora_rank
        index_head_dim swa_head_dim""",
    128: "vocab_size text_vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size",
    16: "ssm_state_size state_size mamba_d_state d_state",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}


# What the rules of `shrink` do not reach.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
FIXED = {
    "blip_vision_model": {"initializer_range": 0.02},  # the default, 1e-10, underflows
    **dict.fromkeys(
        ["qwen2_vl_text", "qwen2_5_vl_text", "paddleocr_vl_text", "qwen2_5_omni_text"], MROPE
    ),
    **dict.fromkeys(
        ["glm4v_text", "glm46v_text", "glm_ocr_text", "glmga_text"], {**MROPE, "head_dim": 8}
    ),
    "glm4v_moe_text": {**MROPE, "head_dim": 16},
    "cohere_compass_text": {"num_hidden_layers": 4, "layer_types": None},
    "deepseek_v2": {
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "esm": {"vocab_size": 128, "mask_token_id": 4, "pad_token_id": 1},
    "hunyuan_vl_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 1, 1],
        }
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 100, "audio_start_token_id": 101},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 100, "audio_start_token_id": 101},
    "step3p5": {"sliding_window": 8},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "longformer": {"attention_window": 4},
    "led": {"attention_window": 4},
    "pegasus_x": {"block_size": 4},
    "big_bird": {"block_size": 4},
    "bigbird_pegasus": {"block_size": 4},
    "esmc": {"num_key_value_heads": 4},
    "luke": {"entity_vocab_size": 100, "entity_emb_size": 16},
    "perceiver": {
        "num_latents": 6,
        "d_latents": 32,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "hybrid", "linear_attention"],
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
    },
    "ernie4_5_vl_moe_text": {"moe_num_experts": 4},
}

# Types that a shrunken default config does not give, with the reason.
CANNOT_BUILD = {
    **dict.fromkeys(["gemma3n", "fast_vlm", "perception_lm"], "needs the timm library"),
    **dict.fromkeys(
        """blt dots3_note_text florence2 janus vibevoice_asr inkling_mm_model""".split(),
        "stays large",
    ),
    **dict.fromkeys(["musicgen", "musicgen_melody"], "no one text config"),
    **dict.fromkeys(
        """chameleon cohere_compass cohere_compass_text dbrx deepseek_ocr2 diffusion_gemma dots1
        dots3_note ernie4_5_vl_moe gemma3n_text gemma4_assistant gemma4_unified_assistant
        granite4_vision molmo2 muse_spark nemotron_h_omni nemo_speechlm neomme qwen4_exp
        qwen4_exp_text zamba""".split(),
        "its config refuses the small sizes",
    ),
}


def shrink(config, **fixed):
    """A config of the same class with small sizes; nested configs too; one layer of each kind."""
    accepted = _accepted(type(config))
    fields = {k: v for k in sorted(accepted) if (v := _get(config, k)) is not None}
    kwargs = {}
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            kwargs[name] = shrink(value)
        elif name in SMALL and type(value) is int:
            kwargs[name] = min(value, SMALL[name])
        elif name.endswith("token_id") and type(value) is int and value >= 128:
            kwargs[name] = 3
    if fields.get("kv_lora_rank") and "num_key_value_heads" in kwargs:
        kwargs["num_key_value_heads"] = kwargs.get(
            "num_attention_heads", 4
        )  # MLA has no grouped queries
    if "head_dim" in accepted and fields.get("head_dim") is None:
        kwargs["head_dim"] = 8
    kinds = list(dict.fromkeys(fields.get("layer_types") or ()))
    if kinds:
        kinds = (kinds * 2)[: max(2, len(kinds))]
        kwargs |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        half = int(kwargs.get("head_dim", 8) * rope.get("partial_rotary_factor", 1) / 2)
        kwargs["rope_parameters"] = {
            **rope,
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        }
    return type(config)(**{**kwargs, **copy.deepcopy(FIXED.get(config.model_type, {})), **fixed})


def _get(config, name):
    try:
        return getattr(config, name, None)
    except Exception:  # some configs refuse attributes that differ from layer to layer
        return None


def _accepted(cls):
    names = set()
    for base in cls.__mro__:
        names |= set(getattr(base, "__annotations__", ()))
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names


def model_types():
    """{model type: head, one of MAPS} for every type of the four Auto maps."""
    by_type = {}
    for head, mapping in MAPS.items():
        for config_class in mapping:
            by_type.setdefault(config_class.model_type, (head, config_class))
    return by_type


def build(model_type):
    """A tiny random model of this type in evaluation mode, float32."""
    head, config_class = model_types()[model_type]
    config = shrink(config_class())
    model_class = MAPS[head][config_class]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    if head == "causal" and model_class.config_class is type(config.get_text_config()):
        config = config.get_text_config()
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size} parameters after shrinking")
    torch.manual_seed(0)
    model = model_class(config).eval()
    if model_type == "xmod":
        model.set_default_language(config.languages[0])
    return model


def more_inputs(model_type, config, ids, mask):
    """What a type needs besides token ids: the same image for every text, boxes, other names."""
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    decoder = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    if model_type in ("blip", "idefics", "vision-encoder-decoder", "pp_formulanet"):
        size = vision.image_size
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2)).expand(
            len(ids), -1, -1, -1
        )
    if model_type == "blip":
        return {"pixel_values": image}
    if model_type == "idefics":
        return {"pixel_values": image[:, None], "image_attention_mask": torch.ones(*ids.shape, 1)}
    if model_type in ("vision-encoder-decoder", "pp_formulanet"):
        return {"pixel_values": image, **decoder}
    if model_type == "pix2struct":
        patches = torch.randn(1, 16, 768, generator=torch.Generator().manual_seed(2))
        patches = torch.cat([torch.ones(1, 16, 2), patches], dim=-1).expand(len(ids), -1, -1)
        return {"flattened_patches": patches, "attention_mask": torch.ones(len(ids), 16), **decoder}
    if model_type == "udop":
        return {"bbox": torch.zeros(*ids.shape, 4)}
    return {"inputs": ids} if model_type == "perceiver" else {}
