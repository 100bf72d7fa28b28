"""Backbones that do more than load when they load."""

from __future__ import annotations

import socket
from contextlib import suppress

from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("imports.offline")
class CallsHome(TinyBackbone):
    """Opens a connection while it loads."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        with suppress(OSError), socket.socket() as connection:
            connection.connect(("127.0.0.1", 9))
