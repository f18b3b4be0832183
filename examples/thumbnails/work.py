"""What the demo asks for: its Tasks, made from the photographs, and what must become of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from examples.thumbnails import photographs

NAMESPACE = "thumbnails-demo"
QUEUE = "thumbnails"
HANDLER = "thumbnail"
IMAGE = "taskqueue-thumbnails:dev"

#: As in taskqueue.yaml.
MAX_ATTEMPTS = 3
MAX_WORKERS = 5

#: Where the broken file is in the queue: early, so that its retries overlap with the rest.
_BROKEN_PLACE = 5


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of thumbnail."""

    name: str
    width: int
    shape: str


PREVIEW = Variant("preview", 192, "fit")
ICON = Variant("icon", 96, "square")


@dataclass(frozen=True, slots=True)
class Job:
    """One Task of the demo."""

    file: str
    variant: Variant

    @property
    def broken(self) -> bool:
        """Whether its file cannot be decoded, so that it has to fail."""
        return self.file == photographs.BROKEN

    @property
    def name(self) -> str:
        """The Task's name."""
        return f"{PurePath(self.file).stem.replace('_', '-')}-{self.variant.name}"

    @property
    def task(self) -> dict[str, Any]:
        """The Task."""
        variant = self.variant
        return {
            "apiVersion": "taskqueue.dev/v1alpha1",
            "kind": "Task",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {
                "queue": QUEUE,
                "handler": HANDLER,
                "payload": {"file": self.file, "width": variant.width, "shape": variant.shape},
            },
        }


def jobs() -> list[Job]:
    """Return all of them: two thumbnails of each photograph, and one of the broken file."""
    jobs = list(_good_jobs())
    jobs.insert(_BROKEN_PLACE, Job(photographs.BROKEN, PREVIEW))
    return jobs


def to_yaml(jobs: list[Job]) -> str:
    """Return the Tasks as `kubectl apply -f` takes them."""
    return yaml.safe_dump_all([job.task for job in jobs], sort_keys=False)


def _good_jobs() -> Iterator[Job]:
    for file in photographs.FILES:
        yield Job(file, PREVIEW)
        yield Job(file, ICON)
