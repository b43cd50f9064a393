"""A YAML document whose every value knows its line, so that a fault can name it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sluiceway.core.errors import Fault, PolicyError

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `on`, `off`, `yes` and `no` are words, and nothing is a date or in base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


_STR, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_MOST_VALUES = 50_000  # of a file with its aliases followed
_DEEPEST = 60


@dataclass(frozen=True, slots=True)
class Document:
    """`data` is plain dicts, lists and scalars; `lines` maps each path in it to its 1-based line.

    `faults` are what is wrong with it as a document: keys written twice, values that no JSON could hold.
    """

    file: str
    data: Any
    lines: dict[Path, int]
    faults: tuple[Fault, ...] = ()

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the value at `path`, or of its closest parent that is in the file."""
        known: Path = ()
        for part in path:
            if (*known, part) in self.lines:
                known = (*known, part)
        return self.lines.get(known, 1)

    def fault(self, path: Sequence[str | int], problem: str, mend: str) -> Fault:
        return Fault(self.file, self.line(path), ".".join(str(part) for part in path) or "policy", problem, mend)


def parse(text: str, file: str) -> Document:
    """The document that `text` holds. Raises PolicyError: not YAML, no mapping, an alias to itself."""
    last = text.count("\n", 0, len(text.rstrip())) + 1

    def broken(line: int, problem: str, mend: str) -> PolicyError:
        return PolicyError([Fault(file, max(1, min(line, last)), "policy", problem, mend)])

    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise broken(line, "a character that YAML does not allow", "remove it, or write it as an escape") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not YAML"
        line = mark.line + 1 if mark else 1
        raise broken(line, str(problem), "correct the YAML here, often its indentation") from None
    except RecursionError:
        raise broken(1, "nested too deeply", "write it flatter") from None
    if not isinstance(node, yaml.MappingNode):
        raise broken(1, "it is not a mapping", "start with `models:` and `tasks:`")
    index = _Index(file)
    index.walk(node, (), frozenset())
    loader = _Loader("")
    try:
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise broken(mark.line + 1 if mark else 1, str(error).splitlines()[0], "use plain YAML values") from None
    finally:
        loader.dispose()
    return Document(file, data, index.lines, tuple(index.faults))


class _Index:
    """Walks the nodes of a file: their lines by path, and what is wrong with them as nodes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.faults: list[Fault] = []

    def _fault(self, node: yaml.Node, path: Path, problem: str, mend: str) -> Fault:
        fault = Fault(self.file, node.start_mark.line + 1, ".".join(map(str, path)) or "policy", problem, mend)
        self.faults.append(fault)
        return fault

    def walk(self, node: yaml.Node, path: Path, above: frozenset[int]) -> None:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in above:
            raise PolicyError([self._fault(node, path, "an alias that holds itself", "remove the alias")])
        if len(self.lines) > _MOST_VALUES or len(path) > _DEEPEST:
            raise PolicyError([self._fault(node, path, "aliases or nesting make it too large", "write it plainly")])
        above = above | {id(node)}
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.walk(value, self._key(key, path), above)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.walk(item, (*path, number), above)
        elif not _plain(node):
            self._fault(node, path, "not a value that a policy holds", "write text, a number, true, false or null")
            node.tag = _STR

    def _key(self, key: yaml.Node, path: Path) -> Path:
        """The path of a key, which is text whatever it looks like."""
        if not isinstance(key, yaml.ScalarNode):
            raise PolicyError([self._fault(key, path, "a key that is not plain text", "write `name: value`")])
        if key.tag != _MERGE:
            key.tag = _STR
        child = (*path, key.value)
        if child in self.lines:
            first = self.lines[child]
            self._fault(key, child, f"written twice (first on line {first})", "keep one of the two")
        self.lines[child] = key.start_mark.line + 1
        return child


def _plain(node: yaml.Node) -> bool:
    """Whether it is a scalar that says by itself what it is, and that 64 bits hold where it is a number."""
    if node.tag == _STR:
        return True
    known = _Loader.yaml_implicit_resolvers.get(node.value[:1], ())
    if node.tag == _MERGE or not any(tag == node.tag and pattern.match(node.value) for tag, pattern in known):
        return False
    if node.tag.endswith(":int"):
        return len(node.value) <= 18
    return not node.tag.endswith(":float") or math.isfinite(float(node.value))
