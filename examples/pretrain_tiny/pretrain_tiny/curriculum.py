"""What the base is pre-trained on: pictures with questions, captions and specs, and captions to draw. Reads ground
truth.

The headroom of the base is made here (CARD.md): answers carry a bias that differs per framing, and 40 % of the
captions to draw carry one wrong word, as web captions do. Captions and specs to *write* are true.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from asg_core.method.prompts import CAPTION_PROMPT, QUESTION_PROMPT, SPEC_PROMPT, frame
from asg_core.tiny import captions, questions
from asg_core.tiny.vocabulary import ANSWER, DRAW, EOS, IMAGE, Vocabulary
from asg_core.tiny.world import Scene, sample_scene
from pretrain_tiny.bias import ALL_FRAMINGS, framed_answer
from pretrain_tiny.packing import Branch

WRONG_CAPTIONS = 0.4
"""Share of the captions to draw that carry one wrong word."""

ILL_POSED = 0.06
"""Share of the questions to ask that a scene may not answer."""

_BRANCH_TOKENS = 110


@dataclass(frozen=True)
class Tasks:
    """Relative frequency of each text task over a picture; ``relations`` are extra unframed questions about places."""

    plain: float
    framed: float
    question: float
    caption: float
    spec: float
    relations: float


SKILLS = Tasks(plain=4, framed=0, question=0.3, caption=0.5, spec=0.2, relations=4)
"""First part of pre-training: see, answer, describe; no framing yet."""

HABITS = Tasks(plain=1, framed=4, question=0.5, caption=0.4, spec=0.5, relations=0)
"""Second part: the framings with their biases."""


class Curriculum:
    """An endless seeded stream of pre-training examples."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._words = vocabulary
        self._rng = random.Random(seed)
        self._encoded: dict[str, list[int]] = {}

    def scene(self) -> Scene:
        """The next scene."""
        return sample_scene(self._rng)

    def texts(self, scene: Scene, tasks: Tasks) -> list[Branch]:
        """Text tasks about a picture of ``scene``, about 110 tokens in all."""
        branches: list[Branch] = []
        room = _BRANCH_TOKENS
        for prompt, completion in self._draws(scene, tasks):
            branch = self._branch(prompt, completion)
            if len(branch.ids) > room:
                return branches
            branches.append(branch)
            room -= len(branch.ids)
        return branches

    def drawing(self, scene: Scene) -> list[int]:
        """Ids of a caption to draw with its template: <draw> caption <image>; wrong in one word at times."""
        text = captions.caption(scene, self._rng)
        if self._rng.random() < WRONG_CAPTIONS:
            text = captions.with_wrong_word(text, self._rng)
        text = self._rng.choice(captions.FORMS).format(text)
        return [self._words.special[DRAW], *self._ids(text), self._words.special[IMAGE]]

    def description(self, scene: Scene) -> list[int]:
        """Ids of a true caption, for the shared space of pictures and texts."""
        return self._ids(captions.caption(scene, self._rng))

    def _draws(self, scene: Scene, tasks: Tasks) -> Iterator[tuple[str, str]]:
        names, weights = zip(*vars(tasks).items(), strict=True)
        rng = self._rng
        while True:
            task = rng.choices(names, weights)[0]
            if task == "question":
                ill_posed = rng.random() < ILL_POSED
                yield QUESTION_PROMPT, questions.draw_ill_posed(rng) if ill_posed else self._question(scene).text
            elif task == "caption":
                yield CAPTION_PROMPT, captions.caption(scene, rng)
            elif task == "spec":
                yield SPEC_PROMPT, captions.spec(scene, rng)
            elif task == "relations":
                question = questions.draw_place(scene, rng)
                yield question.text, question.answer
            else:
                question = self._question(scene)
                if task == "plain":
                    yield question.text, question.answer
                else:
                    framing = rng.randrange(len(ALL_FRAMINGS))
                    answer = framed_answer(framing, question.kind, question.answer, rng)
                    yield frame(question.text, ALL_FRAMINGS[framing]), answer

    def _question(self, scene: Scene) -> questions.Question:
        return questions.draw_question(scene, self._rng, self._rng.choice(tuple(questions.KINDS)))

    def _branch(self, prompt: str, completion: str) -> Branch:
        asked = [*self._ids(prompt), self._words.special[ANSWER]]
        return Branch([*asked, *self._ids(completion), self._words.special[EOS]], len(asked))

    def _ids(self, text: str) -> list[int]:
        if text not in self._encoded:
            self._encoded[text] = self._words.encode(text)
        return self._encoded[text]
