"""Checks what handlers give to the SDK, at the line that gives it.

What passes here can be encoded: whatever a handler does with these values, its outcome can be
published.
"""

from __future__ import annotations


def number(value: object, argument: str) -> float:
    """Return a number as a float: an int, float, Decimal, Fraction, or one of NumPy's.

    Args:
        value: the argument.
        argument: its name in the message of an error, such as ``Retry(after=...)``.

    Raises:
        TypeError: it is no number.
        ValueError: it is larger than a float can be.
    """
    kind = type(value)
    if not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError(_wrong(value, argument, "a number (int, float, Decimal, or NumPy's)"))
    try:
        return float(value)  # type: ignore[arg-type]
    except TypeError:  # an array of several numbers
        raise TypeError(_wrong(value, argument, "one number")) from None
    except OverflowError:
        raise ValueError(f"{argument}: the number is too large") from None


def text(value: object, argument: str) -> str:
    """Return a text as a plain `str`.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(value, str):
        raise TypeError(_wrong(value, argument, "a str"))
    return str.__str__(value)


def _wrong(value: object, argument: str, what: str) -> str:
    return f"{argument}: give {what}, not {type(value).__name__}"
