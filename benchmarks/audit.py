"""What msdask stands on, offline: every package that its requirements bring in, with version and licence.

    python benchmarks/audit.py                 # Markdown; exit code 1 for a missing or unfitting requirement
    python benchmarks/audit.py --extra torch --extra cloud

It reads installed metadata only. Known vulnerabilities are not in there: for those, where there is a network,
run `pip-audit` or look at the advisories of the versions listed.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(extras: Sequence[str]) -> list[Requirement]:
    """What pyproject.toml asks for, with these extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def closure(wanted: Sequence[Requirement]) -> tuple[dict[str, metadata.Distribution], list[str]]:
    """(installed packages by name, sentences about what is missing or does not fit), all the way down."""
    found: dict[str, metadata.Distribution] = {}
    problems: list[str] = []
    waiting = [(requirement, "msdask") for requirement in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, by = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed; {by} requires {requirement}")
            continue
        if not requirement.specifier.contains(package.version, prereleases=True):
            problems.append(f"{name} {package.version} does not fit {requirement} of {by}")
        if key in seen:
            continue
        seen.add(key)
        found[name] = package
        for line in package.requires or []:
            further = Requirement(line)
            extras = [*requirement.extras, ""]
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append((further, name))
    return dict(sorted(found.items())), problems


def licence(package: metadata.Distribution) -> str:
    """Licence by the metadata: its expression, its classifiers, or its first words."""
    facts = package.metadata
    expression = facts.get("License-Expression")
    classifiers = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
    text = " ".join((facts.get("License") or "").split())
    return expression or ", ".join(classifiers) or text[:60] or "not stated"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="of pyproject.toml, such as torch")
    given = parser.parse_args(arguments)
    packages, problems = closure(requirements(given.extra))
    print("| package | version | licence |\n| --- | --- | --- |")
    for name, package in packages.items():
        print(f"| {name} | {package.version} | {licence(package)} |")
    print(f"\n{len(packages)} packages; " + ("; ".join(problems) or "every requirement is met"))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
