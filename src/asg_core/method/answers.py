"""From free text to votes: what counts as the same answer, and what the Solver's N answers say together.

A canonical label is compared whole, never by substring (METHOD, understanding step 3): "4" is not "40", "a" is not
"cat", "two" is "2", and "north" is not "no".
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from asg_core.config.seeding import derive_seed

OTHER = "other"
"""Label of an answer to a yes/no question that is neither, and of an answer to a count that is no single integer."""

NON_ANSWERS = frozenset({"", OTHER})
"""Labels that say nothing: they vote like any other, but nobody is to learn them or to be measured against them."""

_ASCII = str.maketrans(
    dict.fromkeys("‘’‚‛`´′", "'") | dict.fromkeys("“”„‟«»″", '"') | dict.fromkeys("‐‑‒–−", "-") | {"—": " - "}
)
_POLARITY = dict.fromkeys(("yes", "yeah", "yep", "yup", "true"), "yes") | dict.fromkeys(
    ("no", "nope", "nah", "false"), "no"
)

_AUXILIARY = re.compile(
    r"(?:is|are|was|were|do|does|did|could|has|have|had|would|should|might|must)(?:n't)?|"
    r"am|can|can't|cannot|will|won't|shall|shan't|may|ain't"
)
_WORD = re.compile(r"\w+(?:'\w+)?")
_SETTING = re.compile(r"(?:in|on|at|from|of|based|looking|judging|according|considering|given)\b[^,]*,\s*(?=\w)")
_POLAR = re.compile(r"\b(?:yes or no|true or false|or not)\b")
_NUMBER_OF = re.compile(
    r"count\b|(?:what(?:'s| is| are| was| were)? |give |state |tell me )?"
    r"(?:the )?(?:total |exact )?(?:number|count) of\b"
)
_TAG = re.compile(r"<\s*answer\s*>(?P<inside>.*?)(?:<\s*/\s*answer\s*>|<\s*(?:/\s*[a-z]*)?$|$)", re.I | re.S)
_CLOSED = re.compile(r"(?P<inside>.*?)<\s*/\s*answer\s*>", re.I | re.S)
_LABEL = re.compile(r"[\s*_#]*(?:(?:the\s+)?(?:short\s+|final\s+)?answer|a)[\s*_]*:[\s*_]*", re.I)
_LOOSE_QUOTE = re.compile(r"\"|(?<!\w)'|'(?!\w)")
_ARTICLE = re.compile(r"(?<![\w'-])(?:an?|the)\s+(?=[^\s\w]*\w)")
_THOUSANDS = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?\w)")
_WHOLE = re.compile(r"(?<![\w.,:/])([0-9]+)\.0+(?![\w:/-]|[.,]\w)")
_INTEGER = re.compile(r"(?<![\w.-])(?<![0-9][,:/])[0-9]+(?!\w|[.,:/-][0-9])")
_FIRST = re.compile(r"(?P<first>\w+)(?![\w'/-])(?:\W+(?:and|or)\W+(?P<second>\w+))?")


def answer_kind(question: str) -> Literal["yes_no", "count", "open"]:
    """What sort of answer ``question`` asks for, by its first words (METHOD, understanding step 3).

    An auxiliary verb first means yes/no, unless alternatives are offered ("is it red or blue?"), which is open.
    A leading clause ("In the picture, is ...") is skipped. Only whole words decide.
    """
    text = _SETTING.sub("", _plain(question).lstrip("\"'([ "), count=1)
    words = _WORD.findall(text)
    how_many = ("how", "many") in pairwise(words)
    if text.startswith(("yes or no", "true or false")):
        return "yes_no"
    if words and _AUXILIARY.fullmatch(words[0]):
        if how_many and words[1] in ("you", "we", "i"):
            return "count"
        return "open" if "or" in _WORD.findall(_POLAR.sub("", text)) else "yes_no"
    return "count" if how_many or _NUMBER_OF.match(text) else "open"


def answer_span(text: str) -> tuple[int, int]:
    """Characters [start, end) of the answer inside a completion, without tags, label or surrounding white space.

    The answer stands inside ``<answer>..</answer>`` (which a length limit may have cut) or after a leading "Answer:" or
    "A:", else it is the whole text. ``start == end`` when there is none.
    """
    start, end = 0, len(text)
    tagged = _TAG.search(text) or _CLOSED.match(text)
    if tagged:
        start, end = tagged.span("inside")
    label = _LABEL.match(text, start, end)
    if label:
        start = label.end()
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


_LONGEST = 1000
"""Characters of an answer that are read: a runaway completion must not stall a step."""


def normalise(text: str) -> str:
    """The text of an answer made comparable: NFKC, case, quotes, articles, edge punctuation, separators, number words.

    Repeated until stable, since removing one wrapping can uncover another; so the result normalises to itself.
    """
    text = text[:_LONGEST]
    while True:
        start, end = answer_span(text)
        bare = _ARTICLE.sub("", _trim(_LOOSE_QUOTE.sub("", _plain(text[start:end]))))
        digits = number_words_to_digits(_THOUSANDS.sub(lambda match: match[0].replace(",", ""), bare))
        result = " ".join(_WHOLE.sub(r"\1", digits).split())
        if result == text:
            return result
        text = result


def canonical_label(answer: str, question: str) -> str:
    """The label under which ``answer`` to ``question`` is counted; canonical labels map to themselves.

    Yes/no questions give "yes", "no" or "other", counts a decimal integer or "other", all else the normalised text,
    "" when nothing is left. Steps: METHOD, understanding step 3.
    """
    text = normalise(answer)
    kind = answer_kind(question)
    if kind == "yes_no":
        found = _FIRST.match(text)
        label = _POLARITY.get(found["first"], OTHER) if found else OTHER
        return OTHER if found and _POLARITY.get(found["second"], label) != label else label
    if kind == "count":
        integers = {digits.lstrip("0") or "0" for digits in _INTEGER.findall(text)}
        if not integers and (text == "no" or text.split()[:1] == ["none"]):
            return "0"
        return integers.pop() if len(integers) == 1 else OTHER
    return text


def same_answer(a: str, b: str, question: str) -> bool:
    """Whether two answers (or labels) to ``question`` are the same; a non-answer equals nothing, not even itself."""
    label = canonical_label(a, question)
    return label not in NON_ANSWERS and label == canonical_label(b, question)


def opposite(a: str, b: str, question: str) -> bool:
    """Whether one of two answers to a yes/no ``question`` says yes and the other no."""
    if answer_kind(question) != "yes_no":
        return False
    return {canonical_label(a, question), canonical_label(b, question)} == {"yes", "no"}


@dataclass(frozen=True)
class Vote:
    """What N answers to one question say together (METHOD, understanding step 3).

    Attributes:
        labels: the N canonical labels, in the order of the answers.
        shares: label to its share of the answers in (0, 1], majority first, then falling; sums to 1.
        majority: the largest cluster's label.
        majority_share: f, share of the majority.
        margin: m, f minus the second largest share, in [0, 1]; 1 when all agree.
        entropy: H_sc of the shares, nats, in [0, ln N]; exactly 0 when all agree.
        tied: whether several clusters are largest, so that the seed decided.
    """

    labels: tuple[str, ...]
    shares: dict[str, float]
    majority: str
    majority_share: float
    margin: float
    entropy: float
    tied: bool


def vote(labels: Sequence[str], seed: int) -> Vote:
    """Count canonical ``labels``; a tie is broken by ``seed``, whatever their order. ValueError when there are none."""
    if not labels:
        raise ValueError("a vote needs at least one label")
    counts = Counter(labels)
    largest = max(counts.values())
    leaders = sorted(label for label, count in counts.items() if count == largest)
    majority = leaders[derive_seed("vote", seed) % len(leaders)]
    order = sorted(counts, key=lambda label: (-counts[label], label != majority, label))
    shares = {label: counts[label] / len(labels) for label in order}
    ranked = [*shares.values(), 0.0]
    entropy = math.fsum(-p * math.log(p) for p in shares.values())
    return Vote(tuple(labels), shares, majority, ranked[0], ranked[0] - ranked[1], entropy, len(leaders) > 1)


def _plain(text: str) -> str:
    """NFKC, case-folded, quotes and dashes in ASCII, single spaces."""
    folded = unicodedata.normalize("NFKC", text.translate(_ASCII)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).translate(_ASCII).split())


def _edge(char: str) -> bool:
    return char.isspace() or (unicodedata.category(char).startswith("P") and char not in "%#")


def _trim(text: str) -> str:
    """Without punctuation at the edges; a minus sign before a digit, "%" and "#" belong to the answer."""
    start, end = 0, len(text)
    while start < end and _edge(text[start]) and not re.match(r"-[0-9]", text[start:]):
        start += 1
    while start < end and _edge(text[end - 1]):
        end -= 1
    return text[start:end]


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
