"""The texts of the method: seven framings, the question, spec and caption prompts, and parsers of what comes back.

Only the framing text varies between the N answers to a question (METHOD, understanding step 2). Prompts are plain
instructions; a backbone wraps them in its own chat template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FRAMINGS: tuple[str, ...] = (
    "Answer the question with one word or a short phrase. {question}",
    "Look at the image. {question} Reply briefly.",
    "Question: {question} Short answer:",
    "{question} Give only the answer.",
    "Using only what you see, answer this: {question}",
    "Please tell me: {question} Use one word if you can.",
    "Consider the picture and respond in as few words as possible. {question}",
)
"""The N = 7 framings of one instruction. The first is the canonical one, used for STE and single answers."""

CANONICAL_FRAMING = FRAMINGS[0]

HELD_OUT_FRAMINGS: tuple[str, ...] = (
    "You are shown a picture. {question} One word only.",
    "Be brief. {question}",
    "What would you say? {question} Keep it short.",
)
"""Framings never used in training; an evaluation uses them to tell robustness from memorised prompts."""

SCORING_FRAMINGS = FRAMINGS[:3]
"""Framings under which spec questions are answered, on the source image and on candidates (METHOD, generation step)."""

QUESTION_PROMPT = (
    "Ask one short question about this image that can be answered by looking at it. Write only the question."
)

CAPTION_PROMPT = "Describe this image in one short sentence."

SPEC_PROMPT = (
    "Write a prompt for drawing this image, then three short questions about it with answers. "
    "Use this form. Prompt: ... Q: ... A: ... Q: ... A: ... Q: ... A: ..."
)

MAX_SPEC_QUESTIONS = 3
"""Questions of a drawing spec that are kept."""

MAX_PROMPT_WORDS = 80
"""Words of the prompt of a drawing spec."""


def frame(question: str, framing: str) -> str:
    """Put ``question`` into one framing. Braces in the question are kept as they are."""
    return framing.replace("{question}", question)


_MARKUP = re.compile(r"<[^>\n]{1,40}>|```|\{\{|\}\}|^#+\s", re.MULTILINE)
_LEAD = re.compile(r"^(?:\s*(?:(?:question|q)\s*\d*\s*[:.)]|\d+\s*[.)](?!\d)|[-*•\"'“‘]))+\s*", re.IGNORECASE)


@dataclass(frozen=True)
class GateFailure:
    """Why a completion is not a question; the Proposer gets the fixed gate penalty for it."""

    reason: str


def parse_question(completion: str, *, max_words: int = 40) -> str | GateFailure:
    """The one question in a Proposer completion, or why it fails the gate (METHOD, understanding step 1).

    A question is a single line of 3 to ``max_words`` words, free of markup, that ends with its only question mark.
    A leading label ("Question:", "1.", "-") and surrounding quotes are removed; the gate never rewards them.
    """
    text = completion.strip()
    if not text:
        return GateFailure("empty")
    if _MARKUP.search(text):
        return GateFailure("markup")
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        return GateFailure("more than one line")
    question = _LEAD.sub("", lines[0]).strip().strip("\"'“”‘’").strip()
    if not question.endswith("?"):
        return GateFailure("does not end with a question mark")
    if question.count("?") != 1:
        return GateFailure("more than one question")
    words = question[:-1].split()
    if not 3 <= len(words) <= max_words:
        return GateFailure(f"not 3 to {max_words} words")
    if not any(c.isalpha() for c in question):
        return GateFailure("no letters")
    return re.sub(r"\s+", " ", question).replace(" ?", "?")


@dataclass(frozen=True)
class Spec:
    """A Proposer's drawing task: a text prompt and questions with the answers it expects.

    Attributes:
        prompt: what to draw.
        questions: (question, expected answer) pairs, unique questions first seen first, at most three.
        raw_count: number of questions written, duplicates included; ``n_raw`` in METHOD's quality.
    """

    prompt: str
    questions: tuple[tuple[str, str], ...]
    raw_count: int


_LABEL = r"\bq(?:uestion)?\s*(?:\d+\s*[:.)]|:)"
"""Starts a question of a spec. Without a number only a colon will do: "the question." is prose."""

_SPEC_QUESTION = re.compile(_LABEL, re.IGNORECASE)
_SPEC_PROMPT = re.compile(rf"\bprompt\s*:\s*+(?!{_LABEL})(?P<prompt>.+?)\s*(?={_LABEL}|$)", re.IGNORECASE | re.DOTALL)
_SPEC_PAIR = re.compile(
    r"\s*(?P<question>[^?]{3,300}\?)\s*a(?:nswer)?\s*\d*\s*[:.)]\s*(?P<answer>.+)", re.IGNORECASE | re.DOTALL
)


def parse_spec(completion: str) -> Spec | GateFailure:
    """The drawing task in a Proposer completion, or why there is none (METHOD, generation step 1).

    Needs "Prompt: ..." with 1 to ``MAX_PROMPT_WORDS`` words and at least one "Q: ...? A: ..." pair; each question must
    pass :func:`parse_question`. Unanswered, malformed and repeated questions are dropped but counted in ``raw_count``.
    """
    found = _SPEC_PROMPT.search(completion)
    if found is None:
        return GateFailure("no prompt")
    prompt = re.sub(r"\s+", " ", found["prompt"]).strip().strip("\"'“”").rstrip(".").strip()
    if not 1 <= len(prompt.split()) <= MAX_PROMPT_WORDS or _MARKUP.search(prompt):
        return GateFailure(f"prompt not 1 to {MAX_PROMPT_WORDS} plain words")
    written = _SPEC_QUESTION.split(completion[found.end() :])[1:]
    pairs: dict[str, tuple[str, str]] = {}
    for match in filter(None, map(_SPEC_PAIR.match, written)):
        question = parse_question(re.sub(r"\s+", " ", match["question"]))
        answer = re.sub(r"\s+", " ", match["answer"]).strip()
        if isinstance(question, str) and answer:
            pairs.setdefault(question.casefold(), (question, answer))
    if not pairs:
        return GateFailure("no question with an answer")
    return Spec(prompt, tuple(pairs.values())[:MAX_SPEC_QUESTIONS], len(written))
