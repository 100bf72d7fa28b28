"""The prefix tree: distinct images -> distinct prompts per image -> samples, each level one right-padded batch.

Because children are appended behind padded parents, padding ends up in the middle of a row. Nothing is derived from
cache lengths therefore: a dense mask says what is visible, and every row carries its own position counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import TextRequest
from asg_core.errors import PluginError
from asg_core.models.decoding.cache_layers import branch, root
from asg_core.models.decoding.causal_model import CausalModel, Segment, join_segments
from asg_core.models.decoding.feature_cache import watch


@dataclass(frozen=True, eq=False)
class Rows:
    """B partial sequences that are continued in parallel; S cached positions, padding included.

    Attributes:
        cache: keys and values of the S positions.
        visible: (B, S) bool, False at padding.
        counter: (B,) long, position of the next token.
        axes: A, number of position axes.
        last: (B, D) hidden state of each row's last real position, which predicts the next token.
    """

    cache: Cache
    visible: Tensor
    counter: Tensor
    axes: int
    last: Tensor

    def fork(self, parents: Sequence[int], *, growing: bool = False) -> Rows:
        """Row i of the result continues row ``parents[i]``; gradients flow back into the parents.

        With ``growing`` the result can be fed token by token, without gradients, and takes the place of these rows:
        they cannot be continued any more.
        """
        if list(parents) == list(range(len(self.counter))):
            return replace(self, cache=branch(self.cache, None, growing=growing))
        index = tensor_on(self.counter.device, parents)
        return Rows(
            cache=branch(self.cache, index, growing=growing),
            visible=self.visible.index_select(0, index),
            counter=self.counter.index_select(0, index),
            axes=self.axes,
            last=self.last.index_select(0, index),
        )


def extend(model: CausalModel, rows: Rows, segments: Sequence[Segment]) -> tuple[Tensor, Rows]:
    """Append one segment to each of B rows, as one right-padded batch; L is the longest.

    Returns:
        (B, L, D) hidden states and the extended rows. ``last`` means nothing for a row whose segment is empty.
    """
    device = rows.counter.device
    lengths = [len(segment.embeds) for segment in segments]
    counter = rows.counter + tensor_on(device, [segment.advance for segment in segments])
    if not any(lengths):
        return rows.last[:, None][:, :0], replace(rows, counter=counter)
    embeds = pad_sequence([segment.embeds for segment in segments], batch_first=True)
    offsets = pad_sequence([segment.positions.T for segment in segments], batch_first=True).permute(2, 0, 1)
    steps = torch.arange(max(lengths), device=device)
    size = tensor_on(device, lengths)
    real = steps < size[:, None]
    full = tensor_on(device, [not segment.causal for segment in segments])
    inside = (steps[:, None] >= steps) | full[:, None, None]
    # A padded query sees itself: without any key it is NaN in some kernels, and NaN values poison rows that mask them.
    itself = torch.eye(len(steps), dtype=torch.bool, device=device)
    inside = (inside & real[:, None, :] & real[:, :, None]) | itself
    past = rows.visible[:, None, :] & real[:, :, None]
    mask = torch.cat([past, inside], dim=-1)[:, None]
    hidden = model.forward(embeds, mask, offsets + rows.counter[None, :, None], rows.cache)
    return hidden, Rows(
        cache=rows.cache,
        visible=torch.cat([rows.visible, real], dim=1),
        counter=counter,
        axes=rows.axes,
        last=hidden[torch.arange(len(segments), device=device), (size - 1).clamp(min=0)],
    )


def prefill_roots(model: CausalModel, segments: Sequence[Segment]) -> Rows:
    """The roots of a tree: prefill one segment per row, at least one row, as one batch."""
    first = segments[0]
    device = first.embeds.device
    rows = Rows(
        cache=root(model.new_cache()),
        visible=torch.zeros(len(segments), 0, dtype=torch.bool, device=device),
        counter=torch.zeros(len(segments), dtype=torch.long, device=device),
        axes=first.positions.shape[0],
        last=first.embeds.new_zeros(len(segments), first.embeds.shape[1]),
    )
    return extend(model, rows, segments)[1]


def append_token(model: CausalModel, rows: Rows, ids: Tensor) -> Rows:
    """Append one token ``ids[i]``, (B,) long, to each of B rows; without gradients, fork them ``growing`` first."""
    visible = torch.cat([rows.visible, rows.visible.new_ones(len(ids), 1)], dim=1)
    positions = rows.counter[None, :, None].expand(rows.axes, -1, -1)
    hidden = model.forward(model.embed_tokens(ids[:, None]), visible[:, None, None], positions, rows.cache)
    return Rows(rows.cache, visible, rows.counter + 1, rows.axes, hidden[:, -1])


@dataclass(frozen=True, eq=False)
class _Entry:
    version: tuple[Hashable, ...]
    row_of: dict[int, int]
    rows: Rows
    watched: list[weakref.ref[Image]]


class PrefixCache:
    """Keeps the prefilled rows of images, so that calls on the same images under the same weights share them.

    Within a generation step all that is asked about a candidate shares the Solver's prefixes, within an understanding
    step both updates share those of the base policy. An entry goes when one of its images does, and when its role is
    seen with newer weights. Keep only prefixes without gradients. Memory: keys and values of every live image, per
    role.

    Args:
        version: what the weights are now, equal if and only if nothing has changed; ``RoleAdapters.version``. The first
            element names the role.
    """

    def __init__(self, version: Callable[[], tuple[Hashable, ...]]) -> None:
        self._version = version
        self._entries: list[_Entry] = []

    def find(self, images: Sequence[Image | None]) -> tuple[Rows, list[int]] | None:
        """Return rows that hold the prefixes of ``images``, and the row of each image.

        None if no entry holds all of them under the current weights. Entries of the active role under older ones go.
        """
        version = self._version()
        self._entries = [entry for entry in self._entries if entry.version[0] != version[0] or entry.version == version]
        for entry in self._entries:
            if entry.version == version and all(id(image) in entry.row_of for image in images):
                return entry.rows, [entry.row_of[id(image)] for image in images]
        return None

    def keep(self, images: Sequence[Image | None], rows: Rows, first: int = 0) -> None:
        """Keep ``rows``, which hold the prefixes of ``images`` under the current weights, from row ``first`` on.

        Entries of several roles may share ``rows``, whose memory goes with the last of them.
        """
        row_of = {id(image): row for row, image in enumerate(images, start=first)}
        watched = [watch(image, self._forget) for image in images if image is not None]
        self._entries.append(_Entry(self._version(), row_of, rows, watched))

    def _forget(self, key: int) -> None:
        self._entries = [entry for entry in self._entries if key not in entry.row_of]

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self._entries = []


def prefill_prompts(
    model: CausalModel, requests: Sequence[TextRequest], kept: PrefixCache | None = None
) -> tuple[Rows, list[Segment], list[int]]:
    """Prefill every distinct image once and fork it to the distinct prompts of that image.

    Images are distinct by object identity, never by their tokens; None (text only) counts as one image.

    Args:
        requests: at least one.
        kept: prefixes of earlier calls to go on from; left alone where gradients are needed.

    Returns:
        One row per distinct (image, prompt) in order of first appearance, the prompt to append to each row (empty
        where it is there already), and for each request its row.

    Raises:
        PluginError: if the model's prompt segment is empty.
    """
    images: dict[int, Image | None] = {}
    nodes: dict[tuple[int, str], int] = {}
    node_of = []
    for request in requests:
        images.setdefault(id(request.image), request.image)
        node_of.append(nodes.setdefault((id(request.image), request.prompt), len(nodes)))
    prompts = {text: model.prompt(text) for text in dict.fromkeys(text for _, text in nodes)}
    if empty := [text for text, segment in prompts.items() if not len(segment.embeds)]:
        raise PluginError(
            f"the model has no position for the prompt {empty[0]!r}",
            "the first token of an answer is predicted from the last position of the prompt",
            "let prompt() return the template tail at least",
        )
    distinct = list(images.values())
    if torch.is_grad_enabled():
        kept = None
    if kept is None and len(nodes) == len(images):
        # no prefix is kept or shared between prompts, so image and prompt may be one pass
        pairs = list(zip(model.prefixes(distinct), (prompts[text] for _, text in nodes), strict=True))
        if all(segment.causal for pair in pairs for segment in pair):
            rows = prefill_roots(model, [join_segments(pair) for pair in pairs])
            return rows, [Segment(p.embeds[:0], p.positions[:, :0], 0) for _, p in pairs], node_of
    found = kept.find(distinct) if kept is not None else None
    if found is None:
        found = prefill_roots(model, model.prefixes(distinct)), list(range(len(distinct)))
        if kept is not None:
            kept.keep(distinct, found[0])
    trunk, places = found
    row_of = dict(zip(images, places, strict=True))
    return trunk.fork([row_of[image] for image, _ in nodes]), [prompts[text] for _, text in nodes], node_of


def prefill(
    model: CausalModel, requests: Sequence[TextRequest], kept: PrefixCache | None = None
) -> tuple[Rows, list[int]]:
    """:func:`prefill_prompts`, then prefill every distinct prompt of an image once; rows ready to fork into samples."""
    rows, prompts, node_of = prefill_prompts(model, requests, kept)
    return extend(model, rows, prompts)[1], node_of
