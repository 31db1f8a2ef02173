"""`coverage`: silent failures that people reported, and everything that a config can be."""

import json
import shutil
import subprocess
import sys
import time
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, LlamaConfig

import plop_nb as plop
from plop_nb.commands import main
from plop_nb.models import DownloadError
from tests.tiny_models import build


def quietly(model, config=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", plop.CoverageWarning)
        return plop.coverage(model, config)


def hit(found):
    """{entry: modules that it hits}."""
    return found.table.groupby("entry")["hit"].sum().to_dict()


# Failures that people reported


def test_a_name_that_is_none_is_named(tiny_llama):
    """huggingface/peft#1959: no error, no warning."""
    config = LoraConfig(target_modules=["q_proj", "FAKE_TARGET_MODULE"])
    with pytest.warns(plop.CoverageWarning, match="'FAKE_TARGET_MODULE' hits nothing in LlamaFor"):
        found = plop.coverage(tiny_llama, config)
    assert found.missed == ["FAKE_TARGET_MODULE"]
    assert hit(found) == {"q_proj": 2, "FAKE_TARGET_MODULE": 0}


def test_layers_without_adapters_are_named_in_hybrids():
    """huggingface/peft#3554: attention's names reach a few layers of NemotronH."""
    model = build("nemotron_h")
    with pytest.warns(plop.CoverageWarning, match=r"layers of model\.layers get no adapter"):
        found = plop.coverage(model, ["q_proj", "k_proj", "v_proj", "o_proj"])
    assert found.missed == []
    layers = {place for place in found.table["layers"]}
    assert len(layers) == 1


def test_a_forgotten_comma_is_seen(tiny_llama):
    """Python joins "gate_proj" "up_proj" to one name."""
    found = quietly(tiny_llama, ["gate_projup_proj", "down_proj"])  # noqa: ISC001
    assert found.missed == ["gate_projup_proj"]
    assert "gate_proj" in found.problems[0]


def test_a_regular_expression_in_a_list_is_none(tiny_llama):
    """huggingface/peft#1206: PEFT reads entries of a list as ends of names."""
    found = quietly(tiny_llama, [r".*\.1\..*q_proj", "v_proj"])
    assert found.missed == [r".*\.1\..*q_proj"]


def test_a_regular_expression_with_a_typing_error_shows_the_types(tiny_llama):
    found = quietly(tiny_llama, r"model\.layers\.\d+\.attn\.q_proj")
    assert found.adapted == {} and len(found.missed) == 1
    assert "whose types are q_proj, k_proj" in found.problems[0]


def test_a_config_of_another_architecture_hits_nothing(tiny_llama):
    found = quietly(tiny_llama, LoraConfig(target_modules=["c_attn", "c_proj"]))
    assert found.missed == ["c_attn", "c_proj"] and found.adapted == {}
    assert found.headline == "0 adapters in LlamaForCausalLM, 0 trainable parameters"


def test_names_that_reach_into_a_vision_tower_are_told():
    model = build("llava")
    found = quietly(model, ["q_proj", "v_proj"])
    assert "'q_proj' also hits 2 of the vision tower's maps" in found.problems[0]
    kept = LoraConfig(target_modules=["q_proj"], exclude_modules=r".*vision_tower.*")
    assert quietly(model, kept).problems == []


def test_routers_that_a_short_name_reaches_are_told():
    found = quietly(build("mixtral"), ["gate", "q_proj"])
    assert not [p for p in found.problems if "also hits" in p]  # by name: it was meant
    found = quietly(build("qwen3_next"), r".*(expert_gate|q_proj)")
    assert [p for p in found.problems if "also hits" in p and "routers" in p]


def test_adapters_that_a_kernel_passes_by_are_told():
    """Mamba multiplies by `dt_proj.weight` without calling `dt_proj`."""
    found = quietly(build("mamba"), ["dt_proj", "in_proj"])
    assert [p for p in found.problems if "2 adapters do nothing" in p and "dt_proj" in p]
    assert not [p for p in quietly(build("mamba"), ["in_proj"]).problems if "do nothing" in p]


def test_what_peft_renames_is_traced_back_to_its_entry():
    """Mixtral's w1 and w3 become one stacked parameter in transformers 5."""
    found = quietly(build("mixtral"), ["w1", "w2", "w3", "q_proj"])
    assert hit(found) == {"w1": 2, "w2": 2, "w3": 2, "q_proj": 2}
    assert found.missed == [] and len(found.adapted) == 6
    assert [note for note in found.notes if "4 experts" in note]


def test_stacks_of_experts_that_a_name_cannot_reach_are_told():
    found = quietly(build("mixtral"), ["down_proj", "q_proj"])
    assert found.missed == ["down_proj"]
    assert "2 stacks of experts" in found.problems[1] and "target_parameters" in found.problems[1]
    reached = LoraConfig(target_modules=["q_proj"], target_parameters=["down_proj"])
    assert quietly(build("mixtral"), reached).problems == []


# Other arguments of a config


def test_arguments_without_effect_are_named(tiny_llama):
    config = LoraConfig(
        target_modules=["q_proj"],
        layers_to_transform=[0, 5],
        rank_pattern={"up": 3},
        alpha_pattern={"q_proj": 3},
        modules_to_save=["score"],
    )
    problems = quietly(tiny_llama, config).problems
    assert [p.partition(":")[0] for p in problems] == [
        "rank_pattern", "modules_to_save", "layers_to_transform"
    ]  # fmt: skip
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=["vision", "v_proj"])
    (problem,) = quietly(tiny_llama, config).problems
    assert problem.startswith("exclude_modules: 'vision' is no module here")


@pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
def test_variants_of_lora_count_as_they_train(tiny_llama, option):
    config = LoraConfig(r=4, target_modules=["q_proj"], **{option: True})
    found = quietly(tiny_llama, config)
    trainable = get_peft_model(tiny_llama, config).get_nb_trainable_parameters()[0]
    assert found.table["trainable"].sum() == trainable and found.problems == []


def test_layers_and_ranks_show_in_the_table(tiny_llama):
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[1],
        rank_pattern={"v_proj": 2},
    )
    table = quietly(tiny_llama, config).table.set_index("type")
    assert table.loc["q_proj", ["hit", "of", "layers"]].tolist() == [1, 2, "1"]
    assert table["trainable"].to_dict() == {"q_proj": 4 * (32 + 32), "v_proj": 2 * (32 + 16)}


def test_tied_weights_are_noted(tiny_llama):
    tiny_llama.config.tie_word_embeddings = True
    found = quietly(tiny_llama, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert [note for note in found.notes if "share one weight" in note]


# What a config can be


def test_every_form_of_a_config_says_the_same(tiny_llama, tmp_path):
    config = LoraConfig(target_modules=["q_proj", "v_proj"])
    config.save_pretrained(tmp_path / "adapter")
    forms = [
        config,
        config.to_dict(),
        {"target_modules": ["v_proj", "q_proj"]},
        ["q_proj", "v_proj"],
        ("q_proj", "v_proj"),
        {"q_proj", "v_proj"},
        r".*\.(q_proj|v_proj)",
        tmp_path / "adapter",
        str(tmp_path / "adapter"),
        str(tmp_path / "adapter" / "adapter_config.json"),
    ]
    adapted = [quietly(tiny_llama, form).adapted for form in forms]
    assert all(each == adapted[0] and len(each) == 4 for each in adapted)
    assert quietly(get_peft_model(tiny_llama, config)).adapted == adapted[0]


def test_arguments_of_a_newer_peft_are_left_out(tiny_llama):
    assert len(quietly(tiny_llama, {"target_modules": ["q_proj"], "from_2030": 1}).adapted) == 2


def test_default_targets_that_peft_refuses_are_refused():
    """PEFT renames Mixtral's targets before it has taken its defaults, and then finds none."""
    model = build("mixtral")
    with pytest.raises(ValueError, match="PEFT refuses this config for MixtralForCausalLM"):
        plop.coverage(model, LoraConfig())


def test_default_targets_are_those_of_peft(tiny_llama):
    found = quietly(tiny_llama, LoraConfig())
    assert set(found.table["entry"]) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            IA3Config(target_modules=["q_proj"]),
            ValueError,
            "IA3Config is of the kind IA3, expected",
        ),
        ({"peft_type": "LOHA"}, ValueError, "config is of the kind LOHA, expected LORA"),
        ([], ValueError, "PEFT refuses"),
        ("", ValueError, "config='' is blank, expected a peft.LoraConfig"),
        ("   ", ValueError, "is blank"),
        ({"target_modules": [1]}, ValueError, r"target_modules=\[1\] in config, expected names"),
        ({"target_modules": {"q_proj": 1}}, ValueError, "expected names of modules"),
        ({"r": 0, "target_modules": ["q_proj"]}, ValueError, "`r` should be a positive integer"),
        (3, TypeError, "config is int, expected a peft.LoraConfig"),
        (None, TypeError, "config is NoneType, expected a peft.LoraConfig"),
        ("no/such/folder", FileNotFoundError, "there is no adapter_config.json here"),
        ("missing.json", FileNotFoundError, "there is no adapter_config.json here"),
    ],
)
def test_what_is_no_config_of_lora_is_refused(tiny_llama, config, error, message):
    with pytest.raises(error, match=message):
        plop.coverage(tiny_llama, config)


@pytest.mark.parametrize("content", ["{", "[1]", "null", '{"peft_type": "LORA", "r": "many"}'])
def test_a_damaged_file_is_named(tiny_llama, tmp_path, content):
    file = tmp_path / "adapter_config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="adapter_config.json|PEFT refuses"):
        plop.coverage(tiny_llama, tmp_path)


# A model from its configuration alone


def test_a_folder_of_a_model_needs_no_weights(tiny_llama, tmp_path):
    tiny_llama.config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**tiny_llama.config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    )
    found = quietly(tmp_path, ["q_proj", "lm_head"])
    assert found.adapted == quietly(tiny_llama, ["q_proj", "lm_head"]).adapted


def test_code_in_a_model_folder_is_not_run(tiny_llama, tmp_path):
    held = {**tiny_llama.config.to_dict(), "model_type": "own"}
    held["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(held))
    (tmp_path / "own.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        plop.coverage(tmp_path, ["q_proj"])


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(DownloadError, match="has no config.json"):
        plop.coverage(tmp_path, ["q_proj"])


def test_the_model_and_the_config_are_left_as_they_were(tiny_llama):
    config = LoraConfig(target_modules="all-linear")
    names = [name for name, _ in tiny_llama.named_modules()]
    quietly(tiny_llama, config)
    assert [name for name, _ in tiny_llama.named_modules()] == names
    assert config.target_modules == "all-linear"
    assert all(p.requires_grad for p in tiny_llama.parameters())


# Trained adapters


@pytest.fixture
def adapter(tiny_llama, tmp_path):
    """Saves a tiny adapter, after a step of training or before it; returns its folder."""

    def saved(steps, **options):
        model = get_peft_model(
            tiny_llama, LoraConfig(target_modules=["q_proj", "v_proj"], **options)
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(steps):
            ids = torch.arange(8)[None]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        folder = tmp_path / f"adapter_{steps}"
        model.save_pretrained(folder)
        model.unload()
        return folder

    return saved


def test_an_untrained_adapter_is_told_from_a_trained_one(tiny_llama, adapter):
    untrained = quietly(tiny_llama, adapter(0))
    assert untrained.problems == [
        "adapter_model.safetensors was not trained: every B is still zero"
    ]
    assert (untrained.trained["b_norm"] == 0).all() and untrained.trained["loaded"].all()
    trained = quietly(tiny_llama, adapter(1))
    assert trained.problems == [] and (trained.trained["b_norm"] > 0).all()


def test_an_adapter_that_starts_elsewhere_is_not_called_untrained(tiny_llama, adapter):
    assert quietly(tiny_llama, adapter(0, init_lora_weights=False)).problems == []


def test_layers_without_a_gradient_are_named(tiny_llama, adapter):
    folder = adapter(1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.self_attn.v_proj.lora_B" in name)
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, file)
    (problem,) = quietly(tiny_llama, folder).problems
    assert "trained in part: B is still zero at 1 of 4 places" in problem
    assert "model.layers.1.self_attn.v_proj" in problem


def test_tensors_without_a_place_are_named(tiny_llama, adapter):
    """vllm-project/vllm#34186: trained as a text model, loaded into one with another prefix."""
    folder = adapter(1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    moved = {name.replace("model.layers", "model.text.layers"): t for name, t in tensors.items()}
    save_file(moved, file)
    problems = quietly(tiny_llama, folder).problems
    assert "holds 8 tensors that have no place in this model" in problems[0]
    assert "holds nothing for 4 of 4 places" in problems[1]


def test_files_that_do_not_fit_are_refused(tiny_llama, adapter):
    folder = adapter(1)
    held = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**held, "r": 2}))
    with pytest.raises(ValueError, match="does not fit: it was trained on another model, or with"):
        plop.coverage(tiny_llama, folder)


def test_a_truncated_file_is_named(tiny_llama, adapter):
    file = adapter(1) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="it is damaged or incomplete"):
        plop.coverage(tiny_llama, file.parent)


def test_a_pickle_is_read_without_running_it(tiny_llama, adapter):
    folder = adapter(1)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert quietly(tiny_llama, folder).problems == []

    class Harm:
        def __reduce__(self):
            return (exec, ("raise SystemExit('this was run')",))

    torch.save({"harm": Harm()}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        plop.coverage(tiny_llama, folder)


# How it shows itself


def test_it_shows_itself_as_a_tree(tiny_llama):
    found = quietly(tiny_llama, ["q_proj", "<b>"])
    shown = found._repr_html_()
    assert "2 of 2, layers 0-1" in shown and "&lt;b&gt;" in shown and "<b>'" not in shown
    assert "PROBLEM: target_modules: '<b>' hits nothing" in repr(found)
    assert shown.count("<ul") == shown.count("</ul>") and shown.count("<li") == shown.count("</li>")


def test_the_command_fails_where_an_entry_hits_nothing(tiny_llama, adapter, tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_llama.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert main(["coverage", str(folder), "q_proj,v_proj"]) == 0
    assert "4 adapters in LlamaForCausalLM" in capsys.readouterr().out
    assert main(["coverage", str(folder), "q_proj,w_up", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["missed"] == ["w_up"] and told["adapters"] == 2 and told["table"][1]["type"] is None
    assert main(["coverage", str(folder), str(adapter(0)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"][0]["b_norm"] == 0
    shutil.rmtree(folder)
    assert main(["coverage", str(folder), "q_proj"]) == 1
    assert "has no config.json" in capsys.readouterr().err


def test_the_command_says_at_which_rank_names_are_counted(tiny_llama, tmp_path, capsys):
    """Also for a list that is longer than a path may be."""
    tiny_llama.config.save_pretrained(tmp_path)
    names = ",".join(["q_proj", *(f"missing_{number}_proj" for number in range(40))])
    assert main(["coverage", str(tmp_path), names]) == 1
    assert "counted at rank 8" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("size", ["70B", "671B"])
def test_a_large_model_takes_seconds_and_less_than_a_gigabyte(tmp_path, size):
    """Llama-3-70B and DeepSeek-V3 by their configurations, in a process of its own."""
    llama = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        architectures=["LlamaForCausalLM"],
    )
    large = DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"])
    (llama if size == "70B" else large).save_pretrained(tmp_path)
    # VmHWM, because ru_maxrss of a process starts with what its parent had.
    code = (
        "import re, sys; from plop_nb.commands import main; "
        f"code = main(['coverage', {str(tmp_path)!r}, 'q_proj,o_proj,down_proj', '--json']); "
        "status = open('/proc/self/status').read(); "
        r"print(re.search(r'VmHWM:\s*(\d+)', status)[1], file=sys.stderr); sys.exit(code)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["missed"] == ([] if size == "70B" else ["q_proj"])  # it has q_a_proj, q_b_proj
    assert done.returncode == (0 if size == "70B" else 1)
    assert told["adapters"] == (240 if size == "70B" else 61 + 58)
    passed_over = [line for line in told["problems"] if "moves this name to stacked" in line]
    assert len(passed_over) == (0 if size == "70B" else 1)  # those of dense and shared maps
    assert int(done.stderr.split()[-1]) < 1_000_000  # kB
    assert time.monotonic() - start < 120
