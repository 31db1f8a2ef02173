"""Will a server load these adapters? What the sources of vLLM say."""

from peft import LoraConfig
from torch import nn

from plop_nb.maps import unwrapped
from plop_nb.targets import adapted_targets

# All of this was read in vLLM 0.33.0 (PyPI, 2 November 2026), in the files that are named.

# vllm/config/lora.py, `MaxLoRARanks`: the values of --max-lora-rank. 16 unless said otherwise.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
USUAL_RANK = 16

# vllm/lora/peft_helper.py, `_validate_features` and `validate_legal`: what is refused wherever it
# is set, and in which words.
REFUSED = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "biases in adapters (lora_bias)",
    "alora_invocation_tokens": "Activated LoRA (alora_invocation_tokens)",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QALoRA (use_qalora)",
}
# The same file: whole modules that it takes, and starts that leave the base weights as they are.
HEADS = ("classifier", "score")
STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

# docs/models/supported_models.md, the column LoRA, for the classes that transformers has: ticked,
TAKES_ADAPTERS = frozenset(
    """AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AudioFlamingo3ForConditionalGeneration
    Blip2ForConditionalGeneration Cohere2ForCausalLM Cohere2MoeForCausalLM CohereForCausalLM
    CwmForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM DeepseekV3ForCausalLM
    Emu3ForConditionalGeneration Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM
    Exaone4_5_ForConditionalGeneration FalconH1ForCausalLM FlexOlmoForCausalLM
    GPTBigCodeForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    Gemma4ForCausalLM Gemma4ForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM
    Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm4vForConditionalGeneration
    Glm4vMoeForConditionalGeneration GlmAsrForConditionalGeneration GlmForCausalLM
    GlmMoeDsaForCausalLM GlmOcrForConditionalGeneration GptOssForCausalLM
    Granite4VisionForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM
    GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration HYV3ForCausalLM HYV4ForCausalLM
    HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration
    HyperCLOVAXForCausalLM Idefics3ForConditionalGeneration InternVLForConditionalGeneration
    Jais2ForCausalLM JambaForCausalLM Kolibri1ForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
    Lfm2VlForConditionalGeneration Llama4ForConditionalGeneration LlamaForCausalLM
    LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LongcatFlashForCausalLM MellumForCausalLM
    MiniCPM3ForCausalLM MiniMaxM2ForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM
    MixtralForCausalLM Molmo2ForConditionalGeneration MuseGlimmerForConditionalGeneration
    MuseSparkForConditionalGeneration NemotronForCausalLM NemotronHForCausalLM OPTForCausalLM
    Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OlmoHybridForCausalLM
    PaliGemmaForConditionalGeneration Phi3ForCausalLM PhiForCausalLM
    QianfanOCRForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM
    Qwen2VLForConditionalGeneration Qwen2_5OmniThinkerForConditionalGeneration
    Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3OmniMoeThinkerForConditionalGeneration
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration SeedOssForCausalLM
    SmolLM3ForCausalLM SmolVLMForConditionalGeneration Starcoder2ForCausalLM
    VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration
    VoxtralForConditionalGeneration""".split()
)
# and left empty, where the class in vllm/model_executor/models is no `SupportsLoRA` either.
TAKES_NONE = frozenset(
    """AriaForConditionalGeneration BloomForCausalLM Cohere2VisionForConditionalGeneration
    Cosmos3EdgeForConditionalGeneration DbrxForCausalLM DeepseekV4ForCausalLM
    DiffusionGemmaForBlockDiffusion FalconForCausalLM FalconMambaForCausalLM GPT2LMHeadModel
    GPTJForCausalLM GPTNeoXForCausalLM Gemma3nForCausalLM Gemma3nForConditionalGeneration
    HrmTextForCausalLM KimiLinearForCausalLM LlavaOnevisionForConditionalGeneration
    Mamba2ForCausalLM MambaForCausalLM MiMoV2FlashForCausalLM
    MiniMaxM3SparseForConditionalGeneration MossTranscribeDiarizeForConditionalGeneration
    PaddleOCRVLForConditionalGeneration Qwen2AudioForConditionalGeneration StableLmForCausalLM
    Step3p7ForConditionalGeneration Zamba2ForCausalLM""".split()
)
# Parts of multimodal models around the language model, as transformers names them.
AROUND = ("vision", "visual", "audio", "projector", "merger", "connector")


def served_by_vllm(config: LoraConfig, model: nn.Module | None = None) -> list[str]:
    """What stands between these adapters and vLLM, in sentences; none: its sources name nothing.

    Parameters
    ----------
    config : peft.LoraConfig
        Such as `Placement.lora_config` returns.
    model : torch.nn.Module, optional
        The model that it is for. With it, notes also say whether vLLM takes adapters for this
        architecture, and for all the modules.

    Returns
    -------
    list of str
        Empty for an ordinary `LoraConfig` of rank 16 or less on a model whose class is in
        `TAKES_ADAPTERS`. Adapters on a part of what vLLM packs (q, k, v; gate, up) are fine
        (`_create_merged_loras_inplace` in vllm/lora/model_manager.py puts nothing where there is
        none), and so are rslora, `rank_pattern` and `alpha_pattern` (`get_rank_and_scaling` in
        vllm/lora/peft_helper.py).

    Notes
    -----
    The sources are those of vLLM 0.33.0 (2 November 2026); the comments of this module name the
    files. Nothing was run: a server of another version, or with options that exclude others, may
    refuse what they let through.
    """
    notes = _refusals(config) + _ranks(config) + _experts(config)
    if model is not None:
        notes += _architecture(model) + _around_the_language_model(model, config)
    return notes


def _refusals(config):
    """Settings for which vLLM refuses an adapter."""
    notes = []
    for name, words in REFUSED.items():
        if getattr(config, name, None):
            notes.append(f"vLLM does not load adapters with {words}.")
    if getattr(config, "bias", "none") != "none":
        notes.append(f"vLLM does not load adapters with bias={config.bias!r}: train with 'none'.")
    saved = [name for name in config.modules_to_save or [] if name not in HEADS]
    if saved:
        notes.append(
            f"vLLM does not load modules that were trained whole, modules_to_save={saved}, other "
            f"than {' or '.join(HEADS)}: merge the adapters into the model and serve that."
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in STARTS:
        notes.append(
            f"vLLM does not load adapters of init_lora_weights={start!r}, which also changes the "
            "weights of the model: convert them with PEFT's "
            "path_initial_model_for_weight_conversion."
        )
    return notes


def _ranks(config):
    """What --max-lora-rank has to be."""
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if rank > RANKS[-1]:
        return [f"vLLM loads ranks up to {RANKS[-1]}, and this config has rank {rank}."]
    if rank <= USUAL_RANK:
        return []
    enough = next(allowed for allowed in RANKS if allowed >= rank)
    return [
        f"Start vLLM with --max-lora-rank {enough}: this config has rank {rank}, and it loads "
        f"{USUAL_RANK} at most otherwise."
    ]


def _experts(config):
    """What stacked experts need (`_stack_moe_lora_weights`, docs/features/lora.md)."""
    stacks = [name for name in config.target_parameters or [] if not name.endswith(".weight")]
    if not stacks:
        return []
    notes = [
        "PEFT saves adapters of stacked experts fused. Where vLLM keeps experts apart (Mixtral, "
        "Qwen3-MoE), it loads them only with --enable-mixed-moe-lora-format and "
        "is_3d_lora_weight=true for the adapter."
    ]
    parts: dict[str, set[str]] = {}
    for name in stacks:
        stack, _, part = name.rpartition(".")
        parts.setdefault(stack, set()).add(part)
    for stack, found in parts.items():
        if found != {"gate_up_proj", "down_proj"}:
            notes.append(
                "vLLM expects adapters on both gate_up_proj and down_proj of the experts in a "
                f"layer: {stack} has {sorted(found)} only."
            )
            break
    return notes


def _architecture(model):
    name = type(unwrapped(model)).__name__
    if name in TAKES_NONE:
        return [f"vLLM takes no adapters for {name}: merge them into the model and serve that."]
    if name not in TAKES_ADAPTERS:
        return [f"vLLM's table of models does not say whether it takes adapters for {name}."]
    return []


def _around_the_language_model(model, config):
    """`_maybe_init_mm` and `_get_punica_wrapper` in vllm/lora/model_manager.py."""
    around = []
    for target in adapted_targets(model, config):
        if any(word in part for part in target.split(".") for word in AROUND):
            around.append(target)
    if not around:
        return []
    return [
        f"vLLM ignores adapters around the language model, here {len(around)} such as "
        f"{around[0]}, unless started with --enable-tower-connector-lora, which some "
        "architectures do not know."
    ]
