"""The errors that a user can see.

Law: an `ApiError` carries everything that a response needs (status, code, sentence). Code that raises one never
logs it, and code that catches one never adds to it. A broken invariant of ours is not an `ApiError`.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refusal with an HTTP status, a stable `code` and a sentence for people.

    `extra` is merged into the JSON body, `headers` into the response's headers.
    """

    def __init__(
        self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.status, self.code, self.message, self.headers, self.extra)

    def at(self, index: int) -> ApiError:
        """The same, for the item at an index of a bulk or a batch."""
        return ApiError(self.status, self.code, self.message, headers=self.headers, **self.extra, index=index)

    def body(self) -> dict[str, Any]:
        """The JSON body of the response: `{"error", "code"}` and `extra`."""
        return {"error": self.message, "code": self.code, **self.extra}


def _again(status: int, code: str, message: str, headers: dict[str, str], extra: dict[str, Any]) -> ApiError:
    return ApiError(status, code, message, headers=headers, **extra)


class StartupError(Exception):
    """The server or a command cannot start. `exit_code` is the process's exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def bad_request(message: str, code: str = "INVALID_REQUEST") -> ApiError:
    return ApiError(400, code, message)


def not_found() -> ApiError:
    return ApiError(404, "NOT_FOUND", "Document not found")


def unique_violation(field: str) -> ApiError:
    return ApiError(409, "CONFLICT", f"Unique field violation — '{field}' already exists in this collection.")
