# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML that remembers its lines: text -> plain data, with the line of every key for the error messages.

Plain values follow the YAML 1.2 core schema, so that ``1e6`` is a number, ``on`` and ``no`` are text, and nothing
becomes a date. Duplicate keys, keys that are not text, and tags that would build objects are errors.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_MAX_VALUES = 200_000  # aliases can multiply a small text into any size,
_MAX_DEPTH = 50  # and an alias inside its own value has no end
_TAG = "tag:yaml.org,2002:"


class TestbedError(ValueError):
    """A testbed file that cannot be used: one line with file, line, key, value and what is allowed."""

    __test__ = False  # not a test class, whatever its name


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves plain scalars by the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (the name is PyYAML's)


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _kind, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)


def show(value: Any) -> str:
    """Return ``value`` as it would be written in the file, on one line and cut to a readable length."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def show_path(path: KeyPath) -> str:
    """Return a key path as text: ``nodes[1].panel.beams[2]``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


@dataclass
class Document:
    """Plain data of a YAML text and the line of every key path in it."""

    source: str
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Return the line of ``path``, or of the closest key above it that the text holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: KeyPath, problem: str) -> TestbedError:
        """Return the error to raise for what stands at ``path``."""
        key = f"{show_path(path)}: " if path else ""
        return self.error_at(self.line(path), key + problem)

    def error_at(self, line: int, problem: str) -> TestbedError:
        """Return the error to raise for what stands on ``line``."""
        return TestbedError(f"{self.source}:{line}: {' '.join(problem.splitlines())}")


def read(path: str | Path) -> str:
    """Return the text of a file; TestbedError when it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TestbedError(f"{path}:1: byte {error.start} is not UTF-8 text; allowed: YAML in UTF-8") from None
    except OSError as error:
        raise TestbedError(f"{path}: cannot be read: {error.strerror}") from None


def compose(text: str, source: str) -> Document:
    """Return the data and lines of one YAML document; TestbedError names the line of what is not YAML."""
    document = Document(source)
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            raise document.error_at(1, "the file is empty; required: a mapping with version and nodes")
        document.data = _plain(root, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise document.error_at(line, f"not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise document.error_at(line, f"not valid YAML: character {error.character!r} is not allowed") from None
    except RecursionError:
        raise document.error_at(1, "nested too deeply") from None
    return document


def _plain(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    """Return the plain value of a YAML node and note the line of everything below it."""
    document.lines.setdefault(path, node.start_mark.line + 1)
    if len(document.lines) > _MAX_VALUES:
        raise document.error(path[:1], f"more than {_MAX_VALUES} values in the file")
    if len(path) > _MAX_DEPTH:
        raise document.error(path[:1], "nested too deeply")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_plain(item, (*path, index), document) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode) or node.tag != _TAG + "map":
        raise document.error(path, f"tag {node.tag} is not allowed; allowed: plain values, lists and mappings")
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            raise document.error_at(line, f"{show_path(path) or 'top level'}: a key is not text; allowed: names")
        key = key_node.value
        if key in values:
            first = document.line((*path, key))
            raise document.error_at(line, f"{show_path((*path, key))}: duplicate key, first on line {first}")
        document.lines[(*path, key)] = line
        values[key] = _plain(value_node, (*path, key), document)
    return values


def _scalar(node: yaml.ScalarNode, path: KeyPath, document: Document) -> Any:
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= 20:
            return _number(int, text, path, document)
        case "int" | "float":
            return _number(float, text.lower().replace(".inf", "inf").replace(".nan", "nan"), path, document)
    raise document.error(path, f"tag {node.tag} is not allowed; allowed: plain values, lists and mappings")


def _number(kind: type, text: str, path: KeyPath, document: Document) -> float:
    try:
        return kind(text)
    except ValueError:  # an explicit tag on something else, as in !!int x
        raise document.error(path, f"value {show(text)}: must be a number") from None
