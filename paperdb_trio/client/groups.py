"""What is in an exception group.

Law: no imports of ours; the server uses it, too.
"""

from __future__ import annotations

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep. An exception that is not a group is its own leaf.

    An `except*` only remembers what it caught; the exception is raised after it. Before Python 3.11.4, what is
    raised inside comes out wrapped in a group again.
    """
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
