"""A hash that changes with what a function does, and is the same in every process."""

import copyreg
import dis
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes)
CONTAINERS = (Mapping, set, frozenset, list, tuple)
INSTALLED = {"site-packages", "dist-packages"}


def deep_digest(value: Any) -> str:
    """A hash of any value: of a callable, of its code and of all that the code reaches.

    That is: defaults, variables of the functions around it, the arguments of a partial, the object
    of a method, and the functions, classes and values that it names, in its module and in others.
    Of the standard library and of installed packages only the names count, unless the callable
    itself is from that package. What the code imports as it runs is not looked at. Another version
    of Python may give another hash.

    Parameters
    ----------
    value : object

    Returns
    -------
    str
        64 hexadecimal digits, the same in every process.
    """
    return _Walk(_package(value)).digest(value)


def _package(value: Any) -> str:
    """The top package of a value: of what a partial calls, of a function, of an object's class."""
    while isinstance(value, functools.partial):
        value = value.func
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.partition(".")[0]


class _Walk:
    """The hashes of a callable and of all that it reaches, each computed once."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._known: dict[int, str] = {}
        self._kept: list[Any] = []  # alive, so that no id is used twice

    def digest(self, value: Any) -> str:
        """A hash of any value."""
        if isinstance(value, PLAIN):
            return _hash([type(value).__qualname__, repr(value)])
        if id(value) not in self._known:
            self._kept.append(value)
            self._known[id(value)] = f"around {len(self._known)}"  # where it reaches itself
            content = [type(value).__qualname__, *self._content(value)]
            self._known[id(value)] = _hash(content)
        return self._known[id(value)]

    def _content(self, value: Any) -> Iterator[str]:
        """What makes a value what it is, in texts without an address of memory."""
        if isinstance(value, torch.Tensor):
            yield f"{value.dtype} {tuple(value.shape)}"
            yield value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes().hex()
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif isinstance(value, CONTAINERS):
            yield from self._elements(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, (types.FunctionType, type)) and self._is_foreign(value):
            yield f"{value.__module__}.{value.__qualname__}"
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif callable(getattr(value, "__wrapped__", None)):  # a cache, a static method
            yield self.digest(value.__wrapped__)
        else:
            yield from self._object(value)

    def _elements(self, values: Any) -> Iterator[str]:
        """Those of a set or a dict in the order of their hashes: their own is no part of them."""
        if isinstance(values, Mapping):
            yield from sorted(self.digest(key) + self.digest(values[key]) for key in values)
            return
        digests = [self.digest(each) for each in values]
        yield from digests if isinstance(values, (list, tuple)) else sorted(digests)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        """Without names of files and numbers of lines, which change nothing."""
        yield code.co_code.hex()
        yield code.co_exceptiontable.hex()
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        yield repr((counts, names))
        yield self.digest(code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield self.digest(function.__code__)
        yield self.digest((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            yield self.digest(_held(cell))
        names, attributes = _named(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            yield name + self.digest(value)
            if isinstance(value, types.ModuleType) and not self._is_foreign(value):
                for attribute in sorted(attributes & vars(value).keys()):
                    yield attribute + self.digest(vars(value)[attribute])

    def _class(self, kind: type) -> Iterator[str]:
        yield self.digest(kind.__bases__)
        for name, value in sorted(vars(kind).items()):
            if not name.startswith("__") or isinstance(value, types.FunctionType):
                yield name + self.digest(value)

    def _object(self, value: Any) -> Iterator[str]:
        """Its class and what pickle would save of it; only the class of a lock or a connection."""
        if isinstance(value, property):
            yield self.digest((value.fget, value.fset, value.fdel))
            return
        yield self.digest(type(value))
        own = copyreg.dispatch_table.get(type(value))
        try:
            saved = value.__reduce_ex__(4) if own is None else own(value)
        except Exception:
            return
        if isinstance(saved, str):  # it is known by its name
            yield f"{value.__module__}.{saved}"
            return
        for part in saved:
            yield self.digest(list(part) if isinstance(part, Iterator) else part)

    def _is_foreign(self, value: Any) -> bool:
        """Whether it is installed, or of Python's own, and not from the callable's package."""
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        package = (name or "").partition(".")[0]
        if package == self._package:
            return False
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        return package in sys.stdlib_module_names or not INSTALLED.isdisjoint(Path(file).parts)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _held(cell: Any) -> Any:
    """What a variable of a function around holds; nothing where it is not set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _named(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The global names that a code and those within it read, and all names that they have."""
    reads = [step for step in dis.get_instructions(code) if step.opname.startswith("LOAD_GLOBAL")]
    names, attributes = {step.argval for step in reads}, set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            inner_names, inner_attributes = _named(constant)
            names |= inner_names
            attributes |= inner_attributes
    return names, attributes
