"""A user's mistakes on the command line, told in one line about the file or option they lie in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UsageError(Exception):
    """A mistake in what the user asked for, in one line."""


@contextmanager
def arguments_named(sources: Mapping[str, str]) -> Iterator[None]:
    """Turn the library's complaint about an argument into one about the file or option that it came from.

    An error that names none of them is no user's mistake and passes through.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        argument, _, complaint = str(error).partition(": ")
        if argument not in sources:
            raise
        raise UsageError(f"{sources[argument]}: {complaint}") from None
