"""Tasks: splits without a prompt in common, and checkers that tell right from wrong."""

import random

import pytest

from plop_nb.experiments import load_task


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sums", "gsm", "syllogisms", "code"])
def test_task_splits_are_disjoint_and_its_checker_tells_right_from_wrong(name):
    state = random.getstate()
    task = load_task(name, train=60, validation=20, test=20)
    assert random.getstate() == state
    splits = [task.train, task.validation, task.test]
    prompts = [e["prompt"].strip() for split in splits for e in split]
    assert len(set(prompts)) == len(prompts) == 100
    again = load_task(name, train=10, validation=20, test=20)
    assert (again.test, again.validation, again.train) == (
        task.test,
        task.validation,
        task.train[:10],
    )
    assert load_task(name, train=60, validation=20, test=20, seed=1).test != task.test
    for example in task.test[:5]:
        assert task.check(example["completion"], example)
        for wrong in (
            "",
            " ",
            "\n",
            " no idea",
            " 31415926",
            example["prompt"],
            "#### ",
            " NaN",
            "inf" * 500,
        ):
            assert not task.check(wrong, example), (example, wrong)


def test_sums_take_the_first_line_alone():
    task = load_task("sums", train=1, validation=1, test=1)
    example = {"prompt": "", "completion": " -45", "entry": {"answer": "-45"}}
    right = [" -45", "-45\n7", " -45.0"]
    wrong = [" 45", " -45 or 7", " 7\n-45", " -4 5", " 1 -45", " −45"]
    assert [task.check(t, example) for t in right + wrong] == [True] * 3 + [False] * 6


def test_gsm_takes_the_marked_number_else_the_last():
    task = load_task("gsm", train=1, validation=1, test=1)
    example = {"entry": {"answer": "1050"}}
    right = [
        " 3 * 350 = 1050\n#### 1050",
        " #### 1,050 and 7",
        " so 1050",
        " The answer is: 1050.",
        " #### 1050.0",
    ]
    wrong = [" 1050\n#### 105", " 1050 7", " ####", " 1 2 3 1050 4", " #### 1"]
    assert [task.check(t, example) for t in right + wrong] == [True] * 5 + [False] * 5


def test_gsm_reads_signs_commas_and_decimals():
    check = load_task("gsm", train=1, validation=1, test=1).check
    right = [("-7", "-7"), ("#### -7.0", "-7"), ("-1,042", "-1042"), ("0.50", "0.5")]
    wrong = [("-7", "7"), ("7", "-7"), ("7,999", "7"), ("7", "7999"), ("0.5", "5")]
    found = [check(text, {"entry": {"answer": answer}}) for text, answer in right + wrong]
    assert found == [True] * 4 + [False] * 5


def test_syllogisms_take_the_first_word():
    task = load_task("syllogisms", train=1, validation=1, test=1)
    example = {"entry": {"answer": "No"}}
    assert [
        task.check(t, example) for t in (" No", "No, they are not", " Yes", " Yes. No", " Nothing")
    ] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.slow
def test_generated_code_runs_apart_and_within_limits(tmp_path):
    example = load_task("code", train=1, validation=1, test=1).test[0]
    check = load_task("code", train=1, validation=1, test=1).check
    body = example["completion"]
    assert check(body, example) and check(f"{body}\n\nassert False, 'after the function'", example)
    mark = tmp_path / "mark"
    for hostile in (
        "while True: pass",
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "x = 'a' * 2**33; return x",
        f"open({str(mark)!r}, 'w').write('x' * 2**21)",
        "print('True'); return None",
        "return (",
    ):
        assert not check(f"    {hostile}", example), hostile
    assert not mark.exists() or mark.stat().st_size <= 2**20


def test_hub_tasks(monkeypatch):
    """The Hub's rows stood in for: labels, one rephrasing of a question, answers after marks."""
    import datasets

    def load(source, split, name=None):
        if source == "facebook/anli":
            rows = [
                {"premise": f"{split} {i}", "hypothesis": "h", "label": i % 3} for i in range(30)
            ]
        elif source == "meta-math/MetaMathQA":
            rows = [
                {
                    "query": f"q{i}",
                    "response": f"x\nThe answer is: {i}",
                    "original_question": f"o{i // 3}",
                }
                for i in range(60)
            ]
            rows += [
                {
                    "query": f"no number {i}",
                    "response": f"x\nThe answer is: {a}",
                    "original_question": f"n{i}",
                }
                for i, a in enumerate(["x", "1/2", "\\frac{1}{2}", "$y$"] * 20)
            ]
        else:
            assert (source, split, name) == ("openai/gsm8k", "test", "main")
            rows = [{"question": f"t{i}", "answer": f"2*3=<<2*3=6>>6\n#### {i}"} for i in range(9)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    anli = load_task("anli", train=20, validation=5, test=5)
    assert all("train_r3" in e["prompt"] for e in anli.train) and all(
        "test_r3" in e["prompt"] for e in anli.test
    )
    assert anli.check(" neutral", {"completion": " neutral"}) and not anli.check(
        " neutrality", {"completion": " neutral"}
    )
    assert {e["completion"] for e in anli.train} == {" entailment", " neutral", " contradiction"}
    math = load_task("metamath", train=10, validation=5, test=5)
    sources = [e["source"] for e in math.train + math.validation]
    assert len(set(sources)) == 15 and "<<" not in str(math.test)
    assert math.test[0]["completion"].startswith(" 2*3=6\nThe answer is: ")
    assert "no number" not in str([math.train, math.validation])
    for e in math.test + math.validation:
        assert math.check(e["completion"], e) and math.check(e["completion"] + ".00", e)
        assert not any(
            math.check(wrong, e)
            for wrong in (" The answer is: 77", "", "I do not know", "The answer is: x")
        )
    with pytest.raises(ValueError, match="train=30, but 'metamath' has only 1"):
        load_task("metamath", train=30, validation=5, test=5)


def test_bad_tasks():
    with pytest.raises(ValueError, match="name='maths' is not a task, choose one of"):
        load_task("maths")
    with pytest.raises(ValueError, match="train=0, expected an integer of at least 1"):
        load_task("sums", train=0)
