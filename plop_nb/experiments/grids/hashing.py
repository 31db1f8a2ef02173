"""A hash that changes with what a function does, and is the same in every process."""

import contextlib
import dis
import functools
import hashlib
import re
import sys
import types
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plop_nb.fingerprint import as_bytes

PLAIN = (type(None), type(...), int, float, complex, str, bytes, range, Decimal, Fraction)
# What counts of Python's own objects that hold others, or are known by name
HELD = {
    types.ModuleType: ("__name__",),
    types.BuiltinFunctionType: ("__qualname__", "__self__"),
    types.MethodDescriptorType: ("__qualname__",),
    types.MethodType: ("__func__", "__self__"),
    types.SimpleNamespace: ("__dict__",),
    functools.partial: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    type(functools.cache(len)): ("__wrapped__",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    re.Pattern: ("pattern", "flags"),
}
INSTALLED = {"site-packages", "dist-packages"}
FILLING = set("add append clear discard extend insert pop popitem remove setdefault update".split())


def deep_digest(value: Any) -> str:
    """A hash of a value: of a function, of its code and of all that the code reaches.

    By their content count code, defaults, variables of the functions around, and what is named of
    modules that are not installed (plop_nb's own count wherever they are): functions, classes and
    their instances, plain values, tuples, lists, dicts and sets of all these; partials, methods,
    caches, patterns, numpy's arrays, and tensors on the CPU. What else is installed or Python's own
    counts by its name if it is a function or a class, or (a tokenizer, a model) by that of its
    class. What code imports as it runs is not looked at.

    A dict, list or set that a function itself fills (`seen[text] = ...`, `seen.add(text)`) does not
    count as its variable, so a memo may grow; any other state that changes also changes the hash.
    Another version of Python may give another hash.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        64 hexadecimal digits, the same in every process.

    Raises
    ------
    RecursionError
        It is nested some hundreds of levels deep.
    """
    return _digest(value, {})


def _digest(value: Any, known: MutableMapping[int, tuple[str, Any]]) -> str:
    """`known` has the values next to their hashes: they stay alive, so that no id comes twice."""
    if type(value) in PLAIN:
        return _hash([type(value).__qualname__, repr(value)])
    if id(value) not in known:
        known[id(value)] = (f"around {len(known)}", value)  # for where it reaches itself
        parts = list(_parts(value))
        if isinstance(value, (dict, set, frozenset, types.MappingProxyType)):
            # Sorted, each by a hash that does not depend on which of them were met before
            for key in sorted(value, key=lambda each: _digest(each, ChainMap({}, known))):
                parts += [key] if isinstance(value, (set, frozenset)) else [key, value[key]]
        content = [type(value).__qualname__]
        for part in parts:  # a comprehension would be one more call at each level
            content.append(_digest(part, known))
        known[id(value)] = (_hash(content), value)
    return known[id(value)][0]


def _hash(content: list[str]) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """What a value consists of, but for the elements of a dict or a set."""
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
        if _is_own(module):
            yield from (value.__code__, _variables(value))
        else:  # it may stand around an own one, as what torch.no_grad() returns
            yield from (module, value.__qualname__, getattr(value, "__wrapped__", None))
    elif isinstance(value, type):
        yield value.__qualname__
        if _is_own(value.__module__):
            yield value.__bases__
            for name, member in sorted(vars(value).items()):
                if not name.startswith("__") or callable(member):  # __call__, but not __doc__
                    yield from (name, member)
        else:
            yield value.__module__
    elif isinstance(value, types.CodeType):  # without names of files and numbers of lines
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        yield from (value.co_code, value.co_exceptiontable, value.co_flags, counts, names)
        yield value.co_consts
    elif type(value) in HELD:
        yield from (getattr(value, name) for name in HELD[type(value)])
    else:
        yield from _content(value)


def _content(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, PLAIN):  # of a class of its own
        yield repr(value)
    elif isinstance(value, (np.ndarray, np.generic)):
        yield from (str(value.dtype), value.shape)
        yield value.tolist() if value.dtype.hasobject else _hash_of_bytes(value)
    elif type(value) in (torch.Tensor, torch.nn.Parameter):
        yield from (str(value.dtype), tuple(value.shape))
        if value.device.type == "cpu" and value.layout == torch.strided and not value.is_quantized:
            yield _hash_of_bytes(as_bytes(value).numpy())
    if _is_own(type(value).__module__):
        yield from (type(value), object.__getstate__(value))  # its __dict__ and __slots__


def _hash_of_bytes(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def _variables(function: types.FunctionType) -> dict[str, Any]:
    """{name: value} of a function's defaults, and of what its code reads from around it."""
    code, defaults = function.__code__, function.__defaults__ or ()
    found = dict(function.__kwdefaults__ or {})
    found |= zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is not set yet
            found[name] = cell.cell_contents
    reads, names, fills = _names(code)
    for name in reads & function.__globals__.keys():
        found[name] = function.__globals__[name]
    queue = list(found.values())
    for value in queue:  # which grows by what own modules hold
        if isinstance(value, types.ModuleType) and _is_own(value.__name__):
            for name in names & vars(value).keys():
                if (key := f"{value.__name__}.{name}") not in found:
                    found[key] = vars(value)[name]
                    queue.append(found[key])
    for name in list(found):
        if name.rpartition(".")[2] in fills and isinstance(found[name], (dict, list, set)):
            del found[name]
    return found


def _names(code: types.CodeType) -> tuple[set[str], set[str], set[str]]:
    """Of a code and those in it: the globals that are read, all names, and those that it fills."""
    reads, filled_at = set(), set()
    steps = list(dis.get_instructions(code))
    for step in steps:
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            reads.add(step.argval)
        is_method = step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in FILLING
        if is_method or step.opname == "STORE_SUBSCR":
            filled_at.add(_start(step))
    # `seen` begins where `seen[text]` and `seen.add` do
    names, fills = set(code.co_names), {each.argval for each in steps if _start(each) in filled_at}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for own, inner in zip((reads, names, fills), _names(constant), strict=True):
                own |= inner
    return reads, names, fills


def _start(step: dis.Instruction) -> tuple[int | None, int | None]:
    """The line and the column in which the expression of a step begins."""
    positions = step.positions or dis.Positions()
    return positions.lineno, positions.col_offset


def _is_own(module: Any) -> bool:
    """Whether a module is neither Python's nor installed, or is one of plop_nb."""
    package = str(module).partition(".")[0]
    if package == "plop_nb" or package in sys.stdlib_module_names:
        return package == "plop_nb"
    for name in (str(module), package):
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        if not INSTALLED.isdisjoint(path.parts):
            return False
    return True
