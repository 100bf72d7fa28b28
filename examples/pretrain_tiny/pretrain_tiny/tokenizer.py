"""The tokenizer of the embedded model: one word, one token. It is ``tokenizer.json`` of ``asg_core/tiny/data``."""

from __future__ import annotations

import json
from itertools import chain

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from asg_core.method import prompts
from asg_core.tiny.vocabulary import SPECIALS, UNK

_WORDS = r"\.\.\.|\w+(?:['’]\w+)*|[^\w\s]"
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


def serialise(tokenizer: Tokenizer) -> str:
    """Pretty JSON of a tokenizer, stable across runs."""
    return json.dumps(json.loads(tokenizer.to_str()), indent=1, sort_keys=True) + "\n"
