"""A YAML document whose every value knows its line, so that a fault can name it."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Document:
    """`data` is plain dicts, lists and scalars; `lines` maps each path in it to its 1-based line."""

    file: str
    data: Any
    lines: dict[Path, int]

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
    """The document that `text` holds. Raises PolicyError: not YAML, a key twice, no mapping, an alias to itself."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise PolicyError(
            [Fault(file, line, "policy", str(problem), "correct the YAML here, often its indentation")]
        ) from None
    lines: dict[Path, int] = {}
    faults: list[Fault] = []
    if not isinstance(node, yaml.MappingNode):
        raise PolicyError([Fault(file, 1, "policy", "it is not a mapping", "start with `models:` and `tasks:`")])
    _index(node, (), lines, faults, file, set())
    if faults:
        raise PolicyError(faults)
    loader = _Loader("")
    try:
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise PolicyError([Fault(file, 1, "policy", str(error).splitlines()[0], "use plain YAML values")]) from None
    finally:
        loader.dispose()
    return Document(file, data, lines)


def _index(
    node: yaml.Node, path: Path, lines: dict[Path, int], faults: list[Fault], file: str, above: set[int]
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in above:
        raise PolicyError(
            [Fault(file, lines[path], ".".join(map(str, path)), "an alias that holds itself", "remove the alias")]
        )
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.start_mark.line)
            child = (*path, name)
            if child in lines:
                where = ".".join(map(str, child))
                first = lines[child]
                faults.append(
                    Fault(
                        file,
                        key.start_mark.line + 1,
                        where,
                        f"written twice (first on line {first})",
                        "keep one of the two",
                    )
                )
            lines[child] = key.start_mark.line + 1
            _index(value, child, lines, faults, file, above)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _index(item, (*path, number), lines, faults, file, above)
