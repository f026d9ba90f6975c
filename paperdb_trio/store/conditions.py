"""From a filter to SQL: the walk that is the same for both engines. `store.query` has the semantics.

Law: no I/O. An engine brings the SQL of each condition on a field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final, Generic, TypeVar

At = TypeVar("At")
"""SQL for what stands at a path."""

_SIGNS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


class Conditions(ABC, Generic[At]):
    ALL: ClassVar[str]
    """SQL that every document matches."""
    NONE: ClassVar[str]

    def filter(self, filter: dict[str, Any]) -> str:
        """SQL for "the document matches"."""
        parts = []
        for name, condition in filter.items():
            if isinstance(condition, list):  # of `and`, `or`: a condition on a field is never a list
                inner = [self.filter(item) for item in condition]
                joiner, empty = (" OR ", self.NONE) if name == "or" else (" AND ", self.ALL)
                parts.append("(" + joiner.join(inner) + ")" if inner else empty)
            elif name == "not":
                parts.append(self.negated(self.filter(condition)))
            else:
                at = self.field(name)
                operators = condition if isinstance(condition, dict) else {"eq": condition}
                parts += [self._on(at, operator, operand) for operator, operand in operators.items()]
        return "(" + " AND ".join(parts) + ")" if parts else self.ALL

    def _on(self, at: At, operator: str, operand: Any) -> str:
        match operator:
            case "eq":
                return self.eq(at, operand)
            case "ne":
                return self.negated(self.eq(at, operand))
            case "in":
                return self.within(at, operand)
            case "nin":
                return self.negated(self.within(at, operand))
            case "contains":
                return self.contains(at, operand)
            case "startsWith":
                return self.starts_with(at, operand)
            case "exists":
                return self.exists(at, operand)
        return self.compare(at, _SIGNS[operator], operand)

    @abstractmethod
    def field(self, name: str) -> At: ...

    @abstractmethod
    def negated(self, sql: str) -> str: ...

    @abstractmethod
    def eq(self, at: At, operand: Any) -> str: ...

    @abstractmethod
    def compare(self, at: At, sign: str, operand: Any) -> str: ...

    @abstractmethod
    def within(self, at: At, operand: list[Any]) -> str: ...

    @abstractmethod
    def contains(self, at: At, operand: Any) -> str: ...

    @abstractmethod
    def starts_with(self, at: At, operand: str) -> str: ...

    @abstractmethod
    def exists(self, at: At, wanted: bool) -> str: ...
