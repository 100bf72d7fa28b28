"""Words <-> ids: a lower-case word-level tokenizer of the ``tokenizers`` library, with clean text on the way back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import chain

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from asg_core.method import prompts

PAD, UNK, BOS, EOS, ANSWER, DRAW, IMAGE, EMBED = SPECIALS = (
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<answer>",
    "<draw>",
    "<image>",
    "<embed>",
)
"""Template tokens. None of them but <eos> is ever sampled."""

_WORDS = r"\.\.\.|\w+(?:['’]\w+)*|[^\w\s]"
_NO_SPACE_BEFORE = frozenset("?.,:;!)") | {"..."}
_COMMON = """
circle square triangle cross circles squares triangles crosses red green blue yellow purple black small big
object objects shape shapes thing things zero one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9 none
left right above below top bottom far middle center corner side between next near over under beside of in on at to by
from with without what which where who when why how many much is are was were be there here it its this that these
those does do did can could has have a an the and or not no yes maybe color colors size sizes large tiny little
bigger smaller biggest smallest white gray grey orange pink brown background picture image photo drawing scene person
people man woman dog cat car tree house same different more less than most all any each other both only also very
just see shown drawn paint draw some background empty prompt q a question answer ? . , : ; ! ( ) ' " - ...
"""


def build_tokenizer() -> Tokenizer:
    """The tokenizer whose vocabulary is the prompts' words, the world's words and common words of questions."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    texts = (
        *(framing.replace("{question}", " ") for framing in prompts.FRAMINGS + prompts.HELD_OUT_FRAMINGS),
        prompts.QUESTION_PROMPT,
        prompts.CAPTION_PROMPT,
        prompts.SPEC_PROMPT,
        _COMMON,
    )
    words = (word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower()))
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(chain(SPECIALS, words)))}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNK)
    return tokenizer


class Vocabulary:
    """Encodes plain text and decodes to clean text ("what color is the circle?"). Case is not kept, unknown words
    are <unk>.

    Args:
        serialised: the tokenizer's own JSON; the shipped one when None.
    """

    def __init__(self, serialised: str | None = None) -> None:
        if serialised is None:
            serialised = files("asg_core.tiny").joinpath("data/tokenizer.json").read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_str(serialised)
        ids: dict[str, int] = self._tokenizer.get_vocab()
        self._words = {index: word for word, index in ids.items()}
        self.special = {name: ids[name] for name in SPECIALS}

    def __len__(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of ``text``. A template token written out in the text is no template token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Clean text of ``ids``: no space before punctuation, <unk> as itself, other template tokens as nothing.

        The text of a prefix of ``ids`` is a prefix of the text of ``ids``.
        """
        text = ""
        for index in ids:
            word = self._words[int(index)]
            if word in SPECIALS and word != UNK:
                continue
            text += word if not text or word in _NO_SPACE_BEFORE else f" {word}"
        return text


def known_words() -> frozenset[str]:
    """The words of the shipped model, lower case, without template tokens."""
    serialised = json.loads(files("asg_core.tiny").joinpath("data/tokenizer.json").read_text(encoding="utf-8"))
    return frozenset(serialised["model"]["vocab"]) - frozenset(SPECIALS)


def serialise(tokenizer: Tokenizer) -> str:
    """Pretty JSON of a tokenizer, stable across runs."""
    return json.dumps(json.loads(tokenizer.to_str()), indent=1, sort_keys=True) + "\n"
