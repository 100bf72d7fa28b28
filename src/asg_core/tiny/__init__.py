"""The embedded reference backbone: a unified model small enough to train and test the whole method on one CPU thread.

It is registered through the same hook as any plugin; nothing else in ``asg_core`` knows about it. Ground truth
(``questions``, ``captions``, ``detector``) is for evaluation and pre-training only: the modules that serve the
training loop (``plugin``, ``backbone``, ``images``) never let it out. ``CARD.md`` and
``examples/pretrain_tiny`` say how the shipped weights were made.
"""
