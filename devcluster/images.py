"""The images of the project, and of its users' examples: rebuilt when their inputs change.

An image's inputs are its Containerfile, its context, its build arguments and the images it is
built on. Their hash is kept as a label, so a build that would change nothing is skipped, and
one that changes only code reuses the layers below.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from devcluster import base_images, wheels
from devcluster.builders import Builder, builder
from devcluster.commands import DevclusterError
from devcluster.paths import CHECKOUT, cache, digest, locked, tree_digest

#: Operator and worker base.
OPERATOR = "taskqueue-operator:dev"

#: The development broker.
RABBITMQ = "taskqueue-rabbitmq:dev"

#: Increase it when the same inputs produce a different image.
_RECIPE = "2"


def build_image(
    tag: str,
    containerfile: Path,
    context: Path,
    build_args: Mapping[str, str] | None = None,
) -> bool:
    """Build an image unless it is built already from the same inputs.

    It can stand on an image that was built here before (`FROM taskqueue-operator:dev`).

    Args:
        tag: its name, as manifests call it.
        containerfile: the file to build.
        context: the folder that its COPY lines see.
        build_args: values for its ARG lines.

    Returns:
        Whether it was built.

    Raises:
        DevclusterError: it cannot be built; the error has the builder's last lines.
    """
    arguments = dict(build_args or {})
    tool = builder()
    with locked(cache() / "contexts" / tag.replace("/", "_")):
        content = _content(tool, containerfile, context, arguments)
        if tool.label(tag) == content:
            return False
        tool.build(tag, containerfile, context, arguments, content)
        return True


def build_operator(tag: str = OPERATOR, checkout: Path = CHECKOUT) -> bool:
    """Build the operator's image; return whether it was needed.

    Args:
        tag: its name.
        checkout: the sources; versions of what they need are those of this checkout.
    """
    base = builder().base(base_images.PYTHON)
    context = cache() / "contexts"
    context.mkdir(parents=True, exist_ok=True)
    downloaded = wheels.download(wheels.runtime_requirements(checkout))
    with tempfile.TemporaryDirectory(dir=context) as scratch:
        # Hard links: the wheels lie in the same cache.
        shutil.copytree(downloaded, Path(scratch, "wheels"), copy_function=os.link)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(
            checkout / "operator" / "taskqueue", Path(scratch, "taskqueue"), ignore=ignored
        )
        containerfile = checkout / "operator" / "Containerfile"
        arguments = {"BASE_IMAGE": base, "VERSION": project_version(checkout)}
        return build_image(tag, containerfile, Path(scratch), arguments)


def project_version(checkout: Path = CHECKOUT) -> str:
    """Return `taskqueue.__version__` of a checkout, without importing anything of it."""
    text = (checkout / "operator" / "taskqueue" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise DevclusterError('operator/taskqueue/__init__.py has no line `__version__ = "…"`.')
    return found[1]


def build_rabbitmq() -> bool:
    """Build the image of the development broker; return whether it was needed."""
    base = builder().base(base_images.RABBITMQ)
    folder = CHECKOUT / "manifests" / "rabbitmq"
    arguments = {"BASE_IMAGE": base}
    return build_image(RABBITMQ, folder / "Containerfile", folder / "image", arguments)


def _content(
    tool: Builder, containerfile: Path, context: Path, build_args: Mapping[str, str]
) -> str:
    if not containerfile.is_file():
        raise DevclusterError(f"There is no {containerfile} to build an image from.")
    text = containerfile.read_text()
    arguments = [f"{name}={value}" for name, value in sorted(build_args.items())]
    below = [tool.identity(name) for name in parents(text, build_args)]
    return digest([_RECIPE, text, tree_digest(context), *arguments, *below])


def parents(containerfile: str, build_args: Mapping[str, str]) -> list[str]:
    """Return the images that a Containerfile builds on, with its arguments filled in."""
    values = dict(re.findall(r"^ARG\s+(\w+)=(\S+)\s*$", containerfile, re.MULTILINE))
    values.update(build_args)
    names: list[str] = []
    stages: set[str] = set()
    pattern = r"^FROM\s+(\S+)(?:\s+AS\s+(\S+))?\s*$"
    for name, stage in re.findall(pattern, containerfile, re.MULTILINE | re.IGNORECASE):
        filled = re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], found[0]), name)
        if filled not in stages and filled != "scratch" and filled not in names:
            names.append(filled)
        stages.add(stage)
    return names
