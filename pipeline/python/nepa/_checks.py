"""Checks of what a caller gave. Each error names the parameter and says what it may be."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ._errors import SettingError


def wrong(name: str, value: object, rule: str) -> SettingError:
    """The error of a parameter."""
    return SettingError(f"{name} is {value!r}, but it must be {rule}")


def whole(name: str, value: Any, *, least: int = 0) -> int:
    """An integer; NumPy's count, booleans do not."""
    rule = f"a whole number of at least {least}"
    if isinstance(value, bool):
        raise wrong(name, value, rule)
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong(name, value, rule) from None
    if not least <= number < 1 << 64:
        raise wrong(name, value, rule)
    return number


def finite(name: str, value: Any) -> float:
    """A finite number."""
    rule = "a finite number"
    if isinstance(value, (bool, str, bytes)):
        raise wrong(name, value, rule)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong(name, value, rule) from None
    if not math.isfinite(number):
        raise wrong(name, value, rule)
    return number


def positive(name: str, value: Any) -> float:
    """A finite number greater than 0."""
    number = finite(name, value)
    if number <= 0:
        raise wrong(name, value, "greater than 0")
    return number


def finites(name: str, value: Any, count: int) -> list[float]:
    """As many finite numbers."""
    rule = f"{count} finite numbers"
    if isinstance(value, (str, bytes)):
        raise wrong(name, value, rule)
    try:
        numbers = list(value)
    except TypeError:
        raise wrong(name, value, rule) from None
    if len(numbers) != count:
        raise wrong(name, value, rule)
    return [finite(name, number) for number in numbers]


def boolean(name: str, value: Any) -> bool:
    """True or False, and nothing that is only like them."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    return value


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        words = [repr(word) for word in allowed]
        raise wrong(name, value, f"{', '.join(words[:-1])} or {words[-1]}")
    return value


def path(name: str, value: Any, rule: str = "a string or a path") -> str:
    """A URL or a path, also as ``pathlib`` has it."""
    try:
        found = os.fspath(value)
    except TypeError:
        raise wrong(name, value, rule) from None
    if not isinstance(found, str) or not found:
        raise wrong(name, value, rule)
    return found


def paths(name: str, value: Any) -> list[str]:
    """One URL or path, or several."""
    rule = "a URL or path, or several of them"
    if isinstance(value, (str, bytes, os.PathLike)):
        return [path(name, value, rule)]
    if not isinstance(value, Iterable):
        raise wrong(name, value, rule)
    found = [path(name, one, rule) for one in value]
    if not found:
        raise wrong(name, value, rule)
    return found


def texts(name: str, value: Any) -> list[str]:
    """Several strings, each once. One string alone is surely mistaken for a list."""
    rule = "a list of different names"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise wrong(name, value, rule)
    found = [text(name, one) for one in value]
    if len(set(found)) != len(found):
        raise wrong(name, value, rule)
    return found
