"""The model card that every run writes beside its adapters; ``publish`` sends both to a hub."""

from asg_core.cards.card import write_card

__all__ = ["write_card"]
