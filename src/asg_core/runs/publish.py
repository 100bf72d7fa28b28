"""Send a run's adapters and model card to the Hugging Face hub. The only code of asg-core that uses the network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from asg_core.backbones.interface import Role
from asg_core.errors import PublishError, RunFolderError

_NAMES = ("adapter_config.json", "adapter_model.safetensors")


def files_to_publish(run: Path) -> list[str]:
    """What :func:`publish` sends, relative to the run's ``adapters``: the card and PEFT files, nothing else.

    Raises:
        RunFolderError: the run has no finished adapters.
    """
    adapters = run / "adapters"
    found = [
        str(file.relative_to(adapters))
        for role in Role
        for file in sorted((adapters / role.value).rglob("*"))
        if file.name in _NAMES and file.is_file() and not file.is_symlink()
    ]
    if not (adapters / "README.md").is_file() or not found:
        raise RunFolderError(
            f"{run} has nothing to publish", "its adapters or their model card are missing", f"asg train resume={run}"
        )
    return ["README.md", *found]


def publish(run: Path, repository: str, *, private: bool) -> str:
    """Create ``repository`` ("user/name") if need be and send the files; returns its address.

    The token is the one that ``huggingface-cli login`` or HF_TOKEN provides; it is not stored.

    Raises:
        PublishError: the hub refuses or cannot be reached.
    """
    files = files_to_publish(run)
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=run / "adapters", allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PublishError(
            f"{repository} was not published", reason, "log in with 'hf auth login' and repeat"
        ) from error
    return str(address)
