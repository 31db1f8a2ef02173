"""python -m plop_nb: what it prints, writes and answers to mistakes."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from peft import LoraConfig

import plop_nb as plop
from plop_nb.commands import main
from plop_nb.commands import score as command_line
from plop_nb.text_files import read_texts
from tests.conftest import TEXTS


@pytest.fixture
def folder(tiny_llama, byte_tokenizer, tmp_path):
    """A model folder `model`, and a file of texts beside it."""
    tiny_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def command(folder, *more):
    return [str(folder / "model"), "--texts", str(folder / "texts.txt"), *more]


@pytest.mark.slow
def test_terminal_shows_the_result_alone(folder):
    """A process of its own, without a display and with a backend that would need one."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "plop_nb",
            *command(folder, "--k", "2", "--lora-alpha", "32", "--out", "out/of/all"),
        ],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in ("DISPLAY", "TQDM_DISABLE")}
        | {"MPLBACKEND": "tkagg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[0].startswith("adapters on ")
        and lines[-1].startswith("target_modules: ")
        and "<" not in done.stdout
    )
    assert "NFN" in done.stderr and "NFN:" not in done.stdout
    assert sorted(p.name for p in (folder / "out/of/all").iterdir()) == [
        "adapter_config.json", "profile.png", "scores.csv"
    ]  # fmt: skip


def test_readme_commands_run(folder, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    monkeypatch.chdir(folder)
    (folder / "texts.txt").rename("mine.txt")
    commands = re.findall(r"^    plop-nb score (\S+) (.*)$", readme, re.MULTILINE)
    assert [main(["model", *shlex.split(options)]) for _, options in commands] == [0, 0]
    (listed,) = re.findall(r"^    ls placement +# (.*)$", readme, re.MULTILINE)
    assert all(path.name in listed for path in (folder / "placement").iterdir())


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_files_hold_what_python_gives(folder, tiny_llama, byte_tokenizer, capsys, form):
    out = folder / "out"
    assert (
        main(
            command(
                folder,
                "--k",
                "2",
                "--r",
                "4",
                "--lora-alpha",
                "32",
                "--format",
                form,
                "--out",
                str(out),
            )
        )
        == 0
    )
    scores = plop.nfn_scores(tiny_llama, TEXTS, byte_tokenizer, progress=False)
    read = (
        pd.read_csv(out / "scores.csv")
        if form == "csv"
        else pd.read_parquet(out / "scores.parquet")
    )
    pd.testing.assert_frame_equal(read, scores, check_dtype=False)
    placement = plop.place(scores, k=2)
    assert str(placement) in capsys.readouterr().out
    config = LoraConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha) == (4, 32)
    assert (placement.check(tiny_llama, config)["adapted"] == 2).all()
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_budget_and_number_of_texts(folder, capsys):
    assert main(command(folder, "--parameters", "700", "--r", "2", "--n", "3")) == 0
    table = capsys.readouterr().out
    assert "too few texts (3)" in table and table.count(" yes") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model", "--k", "0"],
        ["model", "--k", "2", "--parameters", "100"],
        ["model", "--domain", "code", "--texts", "texts.txt"],
        ["model", "--n", "many"],
        ["model", "--format", "xlsx"],
    ],
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--texts", "nowhere.txt"], "No such file"),
        (["--texts", "model"], "ends in '', expected one of .txt, .jsonl, .csv"),
        (["--column", "question"], "column='question', but texts.txt has no columns"),
        (["--k", "99"], "k=99, expected an integer from 1 to 7"),
        (["--parameters", "1"], "parameters=1 is less than"),
        (
            ["--out", "texts.txt/below"],
            "--out texts.txt/below cannot be written, because texts.txt cannot",
        ),
    ],
)
def test_failures_are_one_line_and_leave_nothing(folder, monkeypatch, capsys, change, says):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(["model", "--texts", "texts.txt", "--out", "out", *change]) == 1
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert (
        last.startswith("plop_nb: ")
        and says in last
        and "Traceback" not in shown.err
        and shown.out == ""
    )
    assert sorted(folder.rglob("*")) == before


def test_the_largest_maps_on_request_with_the_scale_of_the_paper(folder, capsys):
    """Without a word on confidence, which is about scores."""
    assert (
        main(command(folder, "--rule", "size", "--r", "4", "--out", str(folder / "largest"))) == 0
    )
    said = capsys.readouterr()
    assert "target_modules: down_proj, gate_proj, up_proj" in said.out
    assert "confidence" not in said.err
    config = LoraConfig.from_pretrained(folder / "largest")
    assert (config.r, config.lora_alpha) == (4, 8)


def test_what_the_confidence_is_about_is_said(folder, capsys):
    assert main(command(folder)) == 0
    assert "That adapters train better there is not shown" in capsys.readouterr().err


def test_column_of_a_domain(folder, capsys):
    assert main([str(folder / "model"), "--domain", "history", "--column", "question"]) == 1
    assert capsys.readouterr().err.startswith(
        "plop_nb: column='question': 'history' is no Hub data set"
    )


def test_truncated_weights(folder, capsys):
    with open(folder / "model" / "model.safetensors", "r+b") as weights:
        weights.truncate(1000)
    assert main(command(folder)) == 1
    loading, error = capsys.readouterr().err.splitlines()
    assert loading.startswith("plop_nb: loading") and error.startswith("plop_nb: cannot load")


def test_model_that_is_not_to_be_had(folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["no/such-model", *command(folder)[1:]]) == 1
    _, error = capsys.readouterr().err.splitlines()
    assert "plop_nb: cannot load 'no/such-model'" in error


# What is written, and what is left alone


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_work(monkeypatch):
    """Whatever is wrong has to be found before a model is loaded."""
    monkeypatch.setattr(command_line, "load_model", lambda _: pytest.fail("loaded the model"))


@pytest.mark.parametrize("held", ["model", "other model", "adapter"])
def test_a_folder_that_a_result_would_break(folder, capsys, no_work, held):
    """With an adapter_config.json in its folder, a model would no longer load."""
    (folder / "other model").mkdir()
    (folder / "other model" / "config.json").write_text('{"architectures": ["Any"]}')
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"trained")
    before = contents(folder)
    assert main(command(folder, "--out", str(folder / held))) == 1
    says = f"{held} holds a {'trained adapter' if held == 'adapter' else 'model'}, which the "
    assert says in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize("config", ['{"name": "a project"}', "[]", "{"])
def test_a_folder_with_another_config_is_written(folder, config):
    (folder / "out").mkdir()
    (folder / "out" / "config.json").write_text(config)
    for _ in range(2):  # a result of before is no obstacle
        assert main(command(folder, "--out", str(folder / "out"))) == 0
    assert (folder / "out" / "config.json").read_text() == config


def test_obstacles_are_found_before_the_work(folder, capsys, no_work):
    (folder / "link").symlink_to("nowhere")
    (folder / "out" / "scores.csv").mkdir(parents=True)
    for out, obstacle in {
        "link": "link",
        "texts.txt": "texts.txt",
        "out": "out/scores.csv",
    }.items():
        assert main(command(folder, "--out", str(folder / out))) == 1
        assert f"cannot be written, because {folder / obstacle} " in capsys.readouterr().err


def test_a_missing_package_is_found_before_the_work(folder, monkeypatch, capsys, no_work):
    def no_package(*_, **__):
        raise ImportError("Missing optional dependency 'pyarrow'")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", no_package)
    assert main(command(folder, "--out", str(folder / "out"), "--format", "parquet")) == 1
    assert "Missing optional dependency 'pyarrow'" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_result_that_cannot_be_written_leaves_the_one_before(folder, monkeypatch, capsys):
    out = folder / "out"
    assert main(command(folder, "--out", str(out))) == 0
    before = contents(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command_line.Figure, "savefig", full)
    assert main(command(folder, "--n", "2", "--out", str(out))) == 1
    assert capsys.readouterr().err.endswith("plop_nb: [Errno 28] No space left on device\n")
    assert contents(out) == before and sorted(out.iterdir()) == sorted(before)


class Broken(io.StringIO):
    """A standard output whose reader has gone."""

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_has_gone_does_not_lose_the_files(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken())
    assert main(command(folder, "--out", str(folder / "out"))) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("plop_nb: the result cannot be printed ([Errno 32] Broken pipe); the ")
    assert len(list((folder / "out").iterdir())) == 3
    assert main(command(folder)) == 1
    assert capsys.readouterr().err.endswith("cannot be printed ([Errno 32] Broken pipe)\n")


def test_a_closed_output_is_found_before_the_work(folder, monkeypatch, capsys, no_work):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(command(folder)) == 1
    assert "standard output is closed, so the result would be lost" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("output", ["> /dev/full", "| true", ">&-"])
def test_a_process_without_an_output_ends_quietly(folder, output):
    line = shlex.join([sys.executable, "-m", "plop_nb", *command(folder, "--out", "out")])
    done = subprocess.run(
        ["bash", "-c", f"{line} {output}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if output == ">&-" else 1)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert len(list((folder / "out").iterdir())) == 3


def test_an_interrupt_is_no_traceback(folder, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "load_model", interrupt)
    try:
        assert main(command(folder, "--out", str(folder / "out"))) == 130
    except KeyboardInterrupt:  # which would end the tests
        pytest.fail("the interrupt went through")
    assert capsys.readouterr().err.splitlines()[-1] == "plop_nb: interrupted"
    assert not (folder / "out").exists()


@pytest.mark.parametrize("option", ["--n", "--k", "--parameters", "--r", "--lora-alpha"])
@pytest.mark.parametrize("value", ["many", "0", "8.5"])
def test_what_is_no_number_is_named(option, value, capsys):
    with pytest.raises(SystemExit):
        main(["model", option, value])
    says = f"argument {option}: '{value}', expected an integer of at least 1\n"
    assert capsys.readouterr().err.endswith(says)


def test_blank_names(folder, monkeypatch, capsys):
    """As unset variables of a shell give them."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        main(command(folder, "--out", ""))
    assert "argument --out: '' is blank, expected a folder" in capsys.readouterr().err
    assert main(["", *command(folder)[1:]]) == 1
    assert "plop_nb: name='' is blank" in capsys.readouterr().err


def test_folder_that_may_not_be_written(folder, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root every folder may be
    assert main(command(folder, "--out", str(folder / "out"))) == 1
    assert f"because {folder} cannot" in capsys.readouterr().err


# Files of texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\n two, \u2028 still two\r\n"),
        ("b.jsonl", '"one"\n\n{"text": " two, \\u2028 still two", "label": 3}'),
        ("c.csv", '\ufefflabel,text\n1,one\n2," two, \u2028 still two"\n'),
        ("d.csv", '\n\ntext,,\none,,\n\n" two, \u2028 still two",,\n'),
        ("E.CSV", 'text\none\n" two, \u2028 still two"'),
    ],
)
def test_texts_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_texts(tmp_path / name) == ["one", " two, \u2028 still two"]


def test_column_of_a_file(tmp_path):
    (tmp_path / "a.csv").write_text('id,question\n1,"two\nlines"\n2,next\n')
    assert read_texts(tmp_path / "a.csv", "question") == ["two\nlines", "next"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "why?"}))
    assert read_texts(tmp_path / "a.jsonl", "question") == ["why?"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\n \n", "a.txt holds no texts"),
        ("a.txt", b"", "a.txt holds no texts"),
        ("a.csv", b"text\n", "a.csv holds no texts"),
        ("a.txt", "caf\xe9".encode("latin-1"), "a.txt is not UTF-8 .*save it as UTF-8"),
        ("a.csv", "text\ncaf\xe9".encode("latin-1"), "a.csv is not UTF-8 .*save it as UTF-8"),
        ("a.jsonl", '"one"'.encode("utf-16"), "a.jsonl is not UTF-8 .*save it as UTF-8"),
        ("a.txt", "one".encode("utf-16-le"), "line 1 holds a NUL .*save the file as UTF-8"),
        ("a.csv", b"text\none\0two\n", "a.csv: line 2 holds a NUL character"),
        ("a.jsonl", b'"one"\n"one\\u0000two"', "a.jsonl: line 2 holds a NUL character"),
        ("a.jsonl", b'"one\\ud800two"', r"line 1 holds '\\ud800', half of a pair of surrogates"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: line 1 is not JSON .maximum recursion"),
        ("a.jsonl", b"1" * 5000, "a.jsonl: line 1 is not JSON .Exceeds the limit"),
        ("a.csv", b'text\none\n"two\nthree\n', "end of data, in the record that begins on line 3"),
        ("a.csv", b'text\n"one" more\n', "expected after '\"', in the record .* on line 2"),
        ("a.csv", b"text,id,text\none,1,two\n", "the header names 'text' more than once"),
        ("a.json", b"[]", "ends in '.json', expected one of .txt, .jsonl, .csv"),
        ("a.jsonl", b'"one"\n\n{"text": "two"', "a.jsonl: line 3 is not JSON"),
        (
            "a.jsonl",
            b'"one"\n{"question": "two"}',
            r"a.jsonl: line 2 has no column 'text', choose from \['question'\]",
        ),
        ("a.jsonl", b'{"text": 5}', "a.jsonl: line 1 holds 5, expected a text"),
        ("a.jsonl", b'"one"\n["two"]', r"a.jsonl: line 2 holds \['two'\], expected a text"),
        ("a.csv", b"id,text\n1,one\n2\n", "a.csv: line 3 has fewer cells than the header"),
        ("a.csv", b"text,id\none,1\ntwo\n", "a.csv: line 3 has fewer cells than the header"),
        (
            "a.csv",
            b"text\nfine\none, two\n",
            'a.csv: line 3 has more cells than the header: correct it .*between "quotes"',
        ),
        ("a.csv", b"id,text\n1,one\n2,\n", "a.csv: line 3 holds '', expected a text"),
        ("a.csv", b"text\n" + b"x" * 200_000, "a.csv: field larger than field limit"),
    ],
)
def test_files_without_texts(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_texts(tmp_path / name)
