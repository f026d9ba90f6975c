"""The SDK's ES modules, made into CommonJS modules.

Law: for our own sources only, in which each import and export is a statement of its own. Anything else is
refused when the server starts, not left for an application's `require` to find.
"""

from __future__ import annotations

import re
from typing import Final

_IMPORT: Final = re.compile(r'^import \{([^}]*)\} from ("[^"]+");$', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=(?:class|const|(?:async )?function) (\w+))", re.MULTILINE)
_EXPORT_LIST: Final = re.compile(r"^export \{ ([\w, ]+) \};\n", re.MULTILINE)
_LEFT: Final = re.compile(r"^(?:import|export)\b|\bimport\(|\bimport\.meta\b", re.MULTILINE)


def to_commonjs(source: str) -> str:
    """The same module, with `require` and `exports`. Raises ValueError for what it does not know."""
    exported = [name for names in _EXPORT_LIST.findall(source) for name in names.split(", ")]
    exported += _EXPORT.findall(source)
    source = _EXPORT_LIST.sub("", source)
    source = _EXPORT.sub("", source)
    source = _IMPORT.sub(lambda found: f"const {{{_renamed(found[1])}}} = {_require(found[2])};", source)
    if left := _LEFT.search(source):
        line = source[left.start() :].partition("\n")[0]
        raise ValueError(f"This cannot be made into CommonJS: {line}")
    lines = "".join(f"exports.{name} = {name};\n" for name in exported)
    return f'"use strict";\n{source}\n{lines}'


def _renamed(names: str) -> str:
    return re.sub(r"(\w+) as (\w+)", r"\1: \2", names)


def _require(quoted: str) -> str:
    ours = quoted.startswith('"./')
    return f"require({quoted.replace('.js', '.cjs') if ours else quoted})"
