"""Exports are read back as each tool reads them, and hit exactly the placement's modules."""

import ast
import json
import re
import shlex
from dataclasses import dataclass, field

import pytest
import yaml
from peft import LoraConfig
from transformers import HfArgumentParser

import plop_nb as plop
from plop_nb.exporting import export
from plop_nb.targets import adapted_targets
from tests.test_targets import placement_of
from tests.tiny_models import build

TOOLS = ["axolotl", "llama-factory", "ms-swift", "peft", "torchtune", "trl", "unsloth"]


@pytest.fixture(scope="module")
def models():
    """Tiny models of the types in `CASES`."""
    return {kind: build(kind) for kind in {case[0] for case in CASES.values()}}


@pytest.fixture(scope="module")
def chosen(models):
    """A function: the model, the config of a case, and what it hits; each made once."""
    made = {}

    def of(case):
        if case not in made:
            kind, types, options, _ = CASES[case]
            config = placement_of(models[kind], types).lora_config(models[kind], r=4, **options)
            made[case] = models[kind], config, adapted_targets(models[kind], config)
        return made[case]

    return of


# How the tools read


def read_python(text, name):
    """The arguments of the call to `name`."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if ast.unparse(node.func) == name]
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords}


def read_trl(text, model):
    return read_python(text, "LoraConfig")


def read_peft(text, model):
    return json.loads(text)


def read_axolotl(text, model):
    """`_build_peft_lora_config`."""
    cfg = yaml.safe_load(text)
    assert cfg.pop("adapter") == "lora" and type(cfg["lora_alpha"]) is int
    arguments = {
        "r": cfg.pop("lora_r"),
        "lora_alpha": cfg.pop("lora_alpha"),
        "lora_dropout": cfg.pop("lora_dropout"),
        "target_modules": cfg.pop("lora_target_modules", None) or [],
        "target_parameters": cfg.pop("lora_target_parameters", None) or [],
        "modules_to_save": cfg.pop("lora_modules_to_save", None),
    }
    names = {"lora_rank_pattern": "rank_pattern", "lora_alpha_pattern": "alpha_pattern"}
    names |= {f"peft_{name}": name for name in ("use_rslora", "use_dora", "init_lora_weights")}
    arguments |= {names[name]: value for name, value in cfg.items() if value}
    return arguments


# `COMPOSITE_MODELS` of the two multimodal types here: what is frozen, and conflicts.
COMPOSITE = {
    "gemma3": ["multi_modal_projector", "vision_tower"],
    "qwen2_vl": ["visual.merger", "visual.patch_embed", "visual.blocks", "patch_embed"],
}


def read_llama_factory(text, model):
    """`FinetuningArguments`, `_setup_lora_tuning` and `patch_target_modules`."""
    options = yaml.safe_load(text)
    assert options["finetuning_type"] == "lora" and type(options["lora_alpha"]) is int
    names = [name.strip() for name in options["lora_target"].split(",")]
    if model.config.model_type in COMPOSITE:
        frozen = COMPOSITE[model.config.model_type]
        whole = [name for name, _ in model.named_modules()]
        found = [name for name in whole if any(target in name for target in names)]
        names = [name for name in found if not any(part in name for part in frozen)]
    return {
        "r": options["lora_rank"],
        "lora_alpha": options["lora_alpha"],
        "lora_dropout": options["lora_dropout"],
        "use_rslora": options.get("use_rslora", False),
        "use_dora": options.get("use_dora", False),
        "target_modules": names,
    }


@dataclass
class TunerArguments:
    """Of ms-swift."""

    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    target_regex: str | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] = field(default_factory=list)
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_weights: str = "true"


def read_ms_swift(text, model):
    program, command, *words = shlex.split(text.replace("\\\n", ""))  # as a shell does
    assert (program, command) == ("swift", "sft")
    (said,) = HfArgumentParser([TunerArguments]).parse_args_into_dataclasses(words)
    start = said.init_weights
    return {
        "r": said.lora_rank,
        "lora_alpha": said.lora_alpha,
        "lora_dropout": said.lora_dropout,
        "bias": said.lora_bias,
        "use_rslora": said.use_rslora,
        "use_dora": said.use_dora,
        "init_lora_weights": start == "true" if start in ("true", "false") else start,
        "target_modules": said.target_regex or said.target_modules,
        "target_parameters": said.target_parameters,
    }


def read_unsloth(text, model):
    """`FastLlamaModel.get_peft_model` before August 2026, and `FastBaseModel`'s."""
    fast = "FastLanguageModel" in text
    assert fast == (model.config.model_type in ("llama", "mistral", "gemma", "qwen2", "qwen3"))
    arguments = read_python(text, f"{'FastLanguageModel' if fast else 'FastModel'}.get_peft_model")
    names = arguments["target_modules"]
    if fast:
        names = list(names)  # letters, of a string
    if getattr(model.config, "num_experts", None):
        assert arguments["target_parameters"] is not None  # or experts come with them
    return arguments | {"target_modules": names}


def read_torchtune(text, model):
    said = yaml.safe_load(text)["model"]
    attention = [{"output_proj": "o_proj"}.get(name, name) for name in said["lora_attn_modules"]]
    assert attention, "Must pass one or more of LORA_ATTN_MODULES"
    mlp = ["gate_proj", "up_proj", "down_proj"] if said["apply_lora_to_mlp"] else []
    return {
        "r": said["lora_rank"],
        "lora_alpha": said["lora_alpha"],
        "lora_dropout": said["lora_dropout"],
        "use_dora": said.get("use_dora", False),
        "target_modules": attention + mlp,
    }


READERS = {
    "axolotl": read_axolotl,
    "llama-factory": read_llama_factory,
    "ms-swift": read_ms_swift,
    "peft": read_peft,
    "torchtune": read_torchtune,
    "trl": read_trl,
    "unsloth": read_unsloth,
}


def read_back(text, tool, model):
    return LoraConfig(**READERS[tool](text, model))


def scale(config):
    return config.lora_alpha / config.r ** (0.5 if config.use_rslora else 1)


# What can be said, and who cannot say it

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CASES = {
    "names of leaves": ("llama", ["v_proj", "up_proj"], {}, {"torchtune"}),
    "attention": ("llama", ATTENTION, {"lora_dropout": 0.00001}, set()),
    "value and the MLP": ("llama", ["v_proj", *MLP], {"lora_alpha": 32.0}, set()),
    "MLP": ("llama", MLP, {}, {"torchtune"}),
    "layers": ("llama", ["v_proj", "up_proj"], {"layers": [1]}, {"torchtune"}),
    "rslora": ("llama", ATTENTION, {"use_rslora": True}, {"torchtune"}),
    "dora": ("llama", ATTENTION, {"use_dora": True}, set()),
    "half an alpha": (
        "llama",
        ATTENTION,
        {"lora_alpha": 8.5},
        {"axolotl", "llama-factory", "ms-swift"},
    ),
    "ranks": (
        "llama",
        ATTENTION,
        {"rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 8}},
        {"llama-factory", "ms-swift", "torchtune"},
    ),
    "names of two kinds of leaves": ("gpt2", ["attn.c_proj"], {}, {"torchtune"}),
    "stacked experts": ("qwen3_moe", ["v_proj", "down_proj"], {}, {"llama-factory", "torchtune"}),
    "stacked experts alone": ("qwen3_moe", ["down_proj"], {}, {"llama-factory", "torchtune"}),
    "beside stacked experts": ("qwen3_moe", ["v_proj"], {}, {"torchtune"}),
    "a language model": ("gemma3", ["up_proj", "o_proj"], {}, {"torchtune"}),
    "a short name within others": ("qwen2_vl", ["v_proj", "o_proj"], {}, {"torchtune"}),
    "a vision tower": ("gemma3", ["layers.*.mlp.fc1"], {}, {"llama-factory", "torchtune"}),
}


# Multimodal models are slow to copy: those tools alone that treat them apart.
APART = ("llama-factory", "unsloth")
MULTIMODAL = ("gemma3", "qwen2_vl")
PAIRS = [
    (case, tool)
    for case in CASES
    for tool in TOOLS
    if tool in APART or CASES[case][0] not in MULTIMODAL
]


@pytest.mark.parametrize(("case", "tool"), PAIRS)
def test_what_is_exported_is_what_the_tool_reads(chosen, case, tool):
    model, config, wanted = chosen(case)
    if tool in CASES[case][-1]:
        with pytest.raises(ValueError, match=f"tool='{tool}' cannot express this placement: "):
            export(model, config, tool)
        return
    again = read_back(export(model, config, tool), tool, model)
    assert adapted_targets(model, again) == wanted
    assert scale(again) == scale(config)
    assert (again.use_rslora, again.use_dora) == (config.use_rslora, config.use_dora)
    assert again.lora_dropout == config.lora_dropout
    assert again.rank_pattern == config.rank_pattern


def test_each_tool_has_its_own_words(models):
    """The texts of one placement, as a reader sees them."""
    model = models["llama"]
    placement = placement_of(model, ["v_proj", "up_proj"])
    assert placement.export("axolotl", model, r=8, layers=[1]) == (
        "adapter: 'lora'\nlora_r: 8\nlora_alpha: 8\nlora_dropout: 0.0\nlora_target_modules: "
        r"'model\.layers\.1\.self_attn\.v_proj|model\.layers\.1\.mlp\.up_proj'" + "\n"
    )
    assert placement.export("llama-factory", model, lora_alpha=32) == (
        "finetuning_type: 'lora'\nlora_rank: 16\nlora_alpha: 32\nlora_dropout: 0.0\n"
        "lora_target: 'v_proj,up_proj'\n"
    )
    assert placement.export("ms-swift", model) == (
        "swift sft \\\n    --lora_rank 16 \\\n    --lora_alpha 8 \\\n    --lora_dropout 0.0 \\\n"
        "    --target_modules v_proj up_proj\n"
    )
    assert placement.export("unsloth", model) == (
        "from unsloth import FastLanguageModel\n\nmodel = FastLanguageModel.get_peft_model(\n"
        "    model,\n    r=16,\n    lora_alpha=8,\n    lora_dropout=0.0,\n"
        '    target_modules=["v_proj", "up_proj"],\n)\n'
    )
    assert placement.export("trl", model) == (
        "from peft import LoraConfig\n\npeft_config = LoraConfig(\n    r=16,\n    lora_alpha=8,\n"
        '    lora_dropout=0.0,\n    task_type="CAUSAL_LM",\n'
        '    target_modules=["v_proj", "up_proj"],\n)\n'
    )


def test_a_file_of_peft_is_read_by_peft(models, tmp_path):
    model = models["llama"]
    placement = placement_of(model, ["v_proj", "up_proj"])
    text = placement.export("peft", model, rank_pattern={"v_proj": 2})
    (tmp_path / "adapter_config.json").write_text(text)
    config = LoraConfig.from_pretrained(tmp_path)
    assert config.to_dict() == placement.lora_config(model, rank_pattern={"v_proj": 2}).to_dict()


# Refusals


def refusal(model, types, tool, **options):
    with pytest.raises(ValueError, match="cannot express") as caught:
        placement_of(model, types).export(tool, model, **options)
    return str(caught.value)


def test_torchtune_takes_the_mlp_whole(models):
    """The nearest of PLoP's value, up, down has gate, too: two modules in two layers."""
    message = refusal(models["llama"], ["v_proj", "up_proj", "down_proj"], "torchtune")
    assert "on gate_proj, up_proj and down_proj together or not at all" in message
    assert "misses 0 chosen modules [] and adds 2 others ['model.layers.0.mlp.gate_proj'" in message
    nearest = message[message.index("model:\n") :]
    config = read_back(nearest, "torchtune", models["llama"])
    assert config.target_modules == {"v_proj", *MLP}


def test_torchtune_needs_a_module_of_the_attention(models):
    message = refusal(models["llama"], MLP, "torchtune")
    assert "misses 0 chosen modules [] and adds 2 others" in message
    assert len(yaml.safe_load(message[message.index("model:\n") :])["model"]["lora_attn_modules"])


def test_the_nearest_may_leave_out_the_mlp(models):
    message = refusal(models["llama"], [*ATTENTION, "up_proj"], "torchtune")
    assert "misses 2 chosen modules" in message and "adds 0 others" in message
    assert "apply_lora_to_mlp: false" in message


def test_a_model_that_torchtune_does_not_build(models):
    message = refusal(models["gpt2"], ["c_attn"], "torchtune")
    assert message.endswith("Nothing near it can be said there.")


def test_a_scale_without_words_comes_with_the_alpha_that_gives_it(models):
    model = models["llama"]
    message = refusal(model, ATTENTION, "torchtune", r=4, lora_alpha=8, use_rslora=True)
    assert "no option for use_rslora=True (lora_alpha=16 without it gives the same" in message
    assert "The nearest that it has hits the same modules:" in message
    same = placement_of(model, ATTENTION).export("torchtune", model, r=4, lora_alpha=16)
    wanted = placement_of(model, ATTENTION).lora_config(model, r=4, lora_alpha=8, use_rslora=True)
    assert scale(read_back(same, "torchtune", model)) == scale(wanted)


def test_llama_factory_leaves_out_experts(models):
    message = refusal(models["qwen3_moe"], ["v_proj", "down_proj"], "llama-factory")
    assert "but no parameters, such as stacked experts" in message
    assert "misses 2 chosen modules ['model.layers.0.mlp.experts.down_proj'" in message
    assert "lora_target: 'v_proj'" in message
    message = refusal(models["qwen3_moe"], ["down_proj"], "llama-factory")
    assert message.endswith("Nothing near it can be said there.")


def test_ranks_without_words_leave_the_modules(models):
    message = refusal(models["llama"], ATTENTION, "ms-swift", rank_pattern={"v_proj": 2})
    assert "it has no option for rank_pattern={'v_proj': 2}" in message
    assert "The nearest that it has hits the same modules:" in message


@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("axolotl", {"init_lora_weights": False}),
        ("ms-swift", {"bias": "lora_only"}),
        ("unsloth", {"init_lora_weights": "pissa"}),
        ("unsloth", {"modules_to_save": ["model.norm"]}),
    ],
)
def test_values_that_a_tool_does_not_take(models, tool, options):
    name, value = next(iter(options.items()))
    message = refusal(models["llama"], ["v_proj"], tool, **options)
    assert f"it does not take {name}={value!r}" in message


@pytest.mark.parametrize("tool", ["", "TRL", None, "trlx", ["trl"]])
def test_an_unknown_tool_is_named(models, tool):
    message = re.escape(f"tool={tool!r}, expected one of {TOOLS}")
    with pytest.raises(ValueError, match=message):
        placement_of(models["llama"], ["v_proj"]).export(tool, models["llama"])


def test_a_config_that_hits_nothing(models):
    with pytest.raises(ValueError, match="config hits no module of LlamaForCausalLM"):
        export(models["llama"], LoraConfig(target_modules=["nothing"]), "trl")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "places",
    [
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0]},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
        {"target_modules": [], "target_parameters": ["layers.1.mlp.up_proj.weight"]},
    ],
    ids=["layers", "all but some", "weights"],
)
def test_configs_by_hand(models, places, tool):
    model = models["llama"]
    config = LoraConfig(r=4, **places)
    if tool == "torchtune":
        with pytest.raises(ValueError, match="in all layers alike"):
            export(model, config, tool)
        return
    again = read_back(export(model, config, tool), tool, model)
    assert adapted_targets(model, again) == adapted_targets(model, config)


@pytest.mark.filterwarnings("ignore:.*eva_config")
def test_objects_have_no_text(models):
    from peft import EvaConfig

    model = models["llama"]
    options = {"init_lora_weights": "eva", "eva_config": EvaConfig()}
    assert "is an object, which has no text there" in refusal(model, ["v_proj"], "trl", **options)


def test_nothing_is_changed(models):
    model = models["llama"]
    config = placement_of(model, ["v_proj"]).lora_config(model)
    before, names = config.to_dict(), [name for name, _ in model.named_modules()]
    for tool in TOOLS:
        export(model, config, tool)
    assert config.to_dict() == before and [name for name, _ in model.named_modules()] == names


def test_the_head_is_trained_whole_by_unsloth(tiny_llama):
    config = LoraConfig(target_modules=["v_proj", "lm_head"])
    with pytest.raises(ValueError, match="it trains embed_tokens and lm_head whole"):
        export(tiny_llama, config, "unsloth")
    assert "lm_head" in plop.exporting.export(tiny_llama, config, "axolotl")
