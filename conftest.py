"""All tests of the repository: Python's garbage collector looks at a million objects of torch and transformers rarely.

They are no garbage, and looking at them at its usual pace takes an eighth of the time of the tests.
"""

from __future__ import annotations

import gc

gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    """What was imported by now is not looked at again."""
    gc.collect()
    gc.freeze()
