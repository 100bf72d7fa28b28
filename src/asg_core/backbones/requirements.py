"""What installed plugins require, read from package metadata: nothing of a plugin is imported."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import PackageNotFoundError, entry_points, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from asg_core.backbones.hookspecs import PROJECT


def unmet_requirements() -> list[str]:
    """One sentence for every requirement of a plugin's package that this environment does not meet.

    Two plugins whose ranges exclude each other cannot both be met; the sentence names every plugin that wants another
    version of the package.
    """
    problems = []
    for package, owners in sorted(_wanted().items()):
        installed = installed_version(package)
        for owner, requirement in owners:
            if installed is None:
                problems.append(f"{owner} needs {requirement}, which is not installed")
            elif not requirement.specifier.contains(installed, prereleases=True):
                others = [f"{name} needs {other}" for name, other in owners if name != owner and other.specifier]
                beside = f" ({'; '.join(others)})" if others else ""
                problems.append(f"{owner} needs {requirement}, installed is {package} {installed}{beside}")
    return problems


def required_versions() -> dict[str, str | None]:
    """The installed version of every package that plugins' packages, the core's own among them, require; or None."""
    return {package: installed_version(package) for package in sorted(_wanted())}


def _wanted() -> dict[str, list[tuple[str, Requirement]]]:
    """Package -> the plugins' packages that require it, and what they require."""
    plugins = {entry.dist.name: entry.dist for entry in entry_points(group=PROJECT) if entry.dist}
    wanted: dict[str, list[tuple[str, Requirement]]] = defaultdict(list)
    for name, distribution in sorted(plugins.items()):
        for line in distribution.requires or ():
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                continue  # a package that pip could install has none; what cannot be read cannot be compared
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted[canonicalize_name(requirement.name)].append((f"{name} {distribution.version}", requirement))
    return wanted


def installed_version(package: str) -> str | None:
    """The version of a package in this environment, None if it has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
