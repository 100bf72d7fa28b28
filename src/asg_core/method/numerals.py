"""English number words to digits, so that "two" and "2" are the same answer (METHOD, understanding step 3)."""

from __future__ import annotations

import re

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUE = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}

_UNIT = "|".join(_SMALL[1:10])
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{_UNIT}))?|{'|'.join(_SMALL[10:])}|{_UNIT})"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}\s+)?hundred(?:\s+(?:and\s+)?{_BELOW_100})?|{_BELOW_100})"
_NUMBER = re.compile(rf"\b(?:(?:{_BELOW_1000}\s+)?thousand(?:\s+(?:and\s+)?{_BELOW_1000})?|{_BELOW_1000}|zero)\b")


def _value(words: list[str]) -> int:
    total = current = 0
    for word in words:
        if word == "hundred":
            current = max(current, 1) * 100
        elif word == "thousand":
            total, current = max(current, 1) * 1000, 0
        else:
            current += _VALUE.get(word, 0)
    return total + current


def number_words_to_digits(text: str) -> str:
    """Replace every cardinal from zero to 999,999 written in lower-case words by its digits; the rest stays.

    >>> number_words_to_digits("twenty-one cats and two hundred and five dogs, someone said")
    '21 cats and 205 dogs, someone said'
    """
    return _NUMBER.sub(lambda match: str(_value(re.split(r"[\s-]+", match[0]))), text)
