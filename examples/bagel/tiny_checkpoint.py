"""Write the tiny BAGEL checkpoint of the plugin's tests, with the handful of sentences it was taught.

python examples/bagel/tiny_checkpoint.py tiny-bagel
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parents[2] / "plugins" / "asg_bagel" / "tests" / "fixtures"


def main() -> None:
    """Copy the recorded checkpoint and lay the taught understanding expert over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="new folder")
    directory = parser.parse_args().directory
    shutil.copytree(FIXTURES / "golden" / "checkpoint", directory)
    weights = {**load_file(directory / "ema.safetensors"), **load_file(FIXTURES / "taught.safetensors")}
    save_file(weights, directory / "ema.safetensors")
    print(directory)


if __name__ == "__main__":
    main()
