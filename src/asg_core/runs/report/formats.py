"""How the report writes numbers and model text. Everything missing (null, NaN, absent) becomes an en dash."""

from __future__ import annotations

import base64
import unicodedata

from asg_core.runs.folder import number

MISSING = "–"


def decimal(value: object, digits: int = 3) -> str:
    """``value`` with ``digits`` decimals and a true minus sign."""
    found = number(value)
    return MISSING if found is None else f"{round(found, digits) + 0.0:.{digits}f}".replace("-", "−")


def significant(value: object, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits, for columns that mix magnitudes."""
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}g}".replace("-", "−")


def signed(value: object, digits: int = 3) -> str:
    """Like :func:`decimal`, with a plus sign on positive values."""
    found = number(value)
    sign = "+" if found is not None and round(found, digits) > 0 else ""
    return sign + decimal(value, digits)


def points(value: object, digits: int = 1) -> str:
    """A share in [0, 1] as per cent, without the sign."""
    found = number(value)
    return decimal(None if found is None else 100 * found, digits)


def signed_points(value: object, digits: int = 1) -> str:
    """A difference of shares in percentage points, signed."""
    found = number(value)
    return signed(None if found is None else 100 * found, digits)


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


def svg_image(svg: str) -> str:
    """An SVG document as the address of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


FILTERS = {
    form.__name__: form
    for form in (decimal, significant, signed, points, signed_points, p_value, duration, plain, short_path, svg_image)
}
"""By the name they have in the templates."""
