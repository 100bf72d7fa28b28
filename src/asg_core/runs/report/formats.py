"""How the report writes numbers and model text. Everything missing (null, NaN, absent) becomes an en dash."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable
from functools import partial

from asg_core.runs.folder import number

MISSING = "–"


def decimal(value: object, digits: int = 3, *, scale: float = 1, plus: bool = False) -> str:
    """``value`` times ``scale`` with ``digits`` decimals and a true minus sign; ``plus``: with a sign if positive."""
    found = number(value)
    if found is None:
        return MISSING
    shown = round(scale * found, digits) + 0.0
    return f"{shown:{'+' if plus and shown > 0 else ''}.{digits}f}".replace("-", "−")


def points(value: object, digits: int = 1, *, plus: bool = False) -> str:
    """A share in [0, 1] as per cent, or a difference of shares in percentage points, without the word for it."""
    return decimal(value, digits, scale=100, plus=plus)


def significant(value: object, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits, for columns that mix magnitudes."""
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}g}".replace("-", "−")


def p_value(value: object) -> str:
    """A p-value as reports write it: never 0, two digits where it matters."""
    found = number(value)
    if found is None:
        return MISSING
    return "< 0.001" if found < 0.001 else f"{found:.3f}" if found < 0.1 else f"{found:.2f}"


def duration(seconds: object) -> str:
    """Seconds as "48 s", "4 min 12 s" or "3 h 5 min"."""
    found = number(seconds)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.1f} s" if found < 10 else f"{found:.0f} s"
    minutes, rest = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plain(text: object, limit: int = 600) -> str:
    """Model text fit for a page: at most ``limit`` characters, what UTF-8 or HTML cannot carry (control characters,
    lone surrogates) shown as U+FFFD. Not yet escaped.
    """
    shown = "" if text is None else str(text)
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return "".join("�" if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t" else c for c in shown)


def short_path(path: object) -> str:
    """The last two parts of a path: enough to find the file, and no more of somebody's disk than that."""
    return "/".join(plain(path, 200).replace("\\", "/").split("/")[-2:])


def data_uri(content: str | bytes, kind: str) -> str:
    """A file of media type ``kind`` as an address that holds it."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode('ascii')}"


FILTERS: dict[str, Callable[..., str]] = {
    form.__name__: form for form in (decimal, significant, points, p_value, duration, plain, short_path, data_uri)
} | {"signed": partial(decimal, plus=True), "signed_points": partial(points, plus=True)}
"""By the name they have in the templates."""
