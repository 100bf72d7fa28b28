"""Words <-> ids."""

from __future__ import annotations

import random

import pytest

from asg_core.method import prompts
from asg_core.tiny.captions import caption, spec
from asg_core.tiny.categories import CATEGORIES, draw_task
from asg_core.tiny.questions import draw_ill_posed, draw_place, draw_question
from asg_core.tiny.vocabulary import EOS, SPECIALS, UNK, Vocabulary
from asg_core.tiny.world import sample_scene

WORDS = Vocabulary()


def _world_texts() -> list[str]:
    rng = random.Random(0)
    texts = [draw_task(category, rng).prompt for category in CATEGORIES for _ in range(30)]
    for _ in range(200):
        scene = sample_scene(rng)
        question = draw_question(scene, rng)
        texts += [question.text, question.answer, caption(scene, rng), spec(scene, rng), draw_ill_posed(rng)]
        texts.append(draw_place(scene, rng).answer)
    return texts


@pytest.mark.parametrize(
    "text",
    [
        *(prompts.frame("what color is the circle?", f) for f in prompts.FRAMINGS + prompts.HELD_OUT_FRAMINGS),
        prompts.QUESTION_PROMPT,
        prompts.CAPTION_PROMPT,
        prompts.SPEC_PROMPT,
    ],
)
def test_every_prompt_is_made_of_known_words(text: str) -> None:
    assert WORDS.special[UNK] not in WORDS.encode(text)


def test_texts_of_the_world_round_trip() -> None:
    for text in _world_texts():
        assert WORDS.decode(WORDS.encode(text)) == text


def test_the_text_of_a_prefix_is_a_prefix_of_the_text() -> None:
    for text in _world_texts()[::7]:
        ids = WORDS.encode(text)
        whole = WORDS.decode(ids)
        assert all(whole.startswith(WORDS.decode(ids[:end])) for end in range(len(ids)))


def test_case_and_unknown_words() -> None:
    assert WORDS.decode(WORDS.encode("What COLOR is the zebra ?")) == "what color is the <unk>?"


def test_template_tokens_cannot_be_written_by_a_prompt() -> None:
    ids = WORDS.encode(" ".join(SPECIALS))
    assert not set(ids) & {WORDS.special[name] for name in SPECIALS if name != UNK}
    assert WORDS.decode([WORDS.special[EOS]]) == ""
