"""The errors of a store that cannot write, or read. Nothing of such a write is in the file, unless it says so.

Law: each is a fault of the disk, of the process or of ours, or an administrator's doing; never the client's.
"""

from __future__ import annotations

from paperdb_trio.errors import ApiError


def shutting_down() -> ApiError:
    return ApiError(503, "SHUTTING_DOWN", "The server is shutting down", headers={"Retry-After": "1"})


def storage_full() -> ApiError:
    return ApiError(
        507,
        "STORAGE_FULL",
        "The disk is full: nothing was written. Reads and deletes go on; try again when there is room.",
    )


def storage_failed(done: str = "written") -> ApiError:
    return ApiError(
        503,
        "STORAGE_ERROR",
        f"The storage failed: nothing was {done}. Try again later.",
        headers={"Retry-After": "1"},
    )


def storage_gone() -> ApiError:
    return ApiError(
        503,
        "STORAGE_GONE",
        "The database file was removed, replaced or unmounted: nothing is stored any more. "
        "Bring it back and restart the server.",
    )


def storage_away(done: str = "written") -> ApiError:
    return ApiError(
        503,
        "STORAGE_ERROR",
        f"PostgreSQL cannot be reached: nothing was {done}. Try again later.",
        headers={"Retry-After": "1"},
    )


def storage_hangs() -> ApiError:
    return ApiError(
        503,
        "STORAGE_ERROR",
        "The process that writes does not respond: nothing was written. Try again later.",
        headers={"Retry-After": "1"},
    )


def storage_unknown() -> ApiError:
    """A 504, because clients take it for no response, and know that such a write may have happened."""
    return ApiError(
        504,
        "STORAGE_UNKNOWN",
        "The storage was lost, or the server stopped, during the write: whether this was written is unknown. "
        "Repeat it with the same Idempotency-Key.",
        headers={"Retry-After": "1"},
    )


def internal() -> ApiError:
    return ApiError(500, "INTERNAL", "Internal error; the server's log has the details")


def database_gone() -> ApiError:
    """For a write or a read that was under way when its database was deleted."""
    return ApiError(401, "KEY_REVOKED", "The database has been deleted, and its keys with it")
