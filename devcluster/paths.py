"""Where devcluster keeps things: three places, and nothing anywhere else.

- the *cache* (``$XDG_CACHE_HOME/taskqueue-devcluster``): programs, base images, wheels, images.
  Every entry is named after what it was made from, so it never goes stale, is shared by all
  checkouts of one user and can be deleted at any time.
- the *state* (``/var/lib/taskqueue-devcluster``): one folder for each cluster of this machine. It
  exists exactly as long as its cluster.
- the *checkout* (``.devcluster/``): the kubeconfig. Git ignores it.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: The top of the checkout: the folder that contains ``devcluster/``.
CHECKOUT = Path(__file__).resolve().parent.parent

#: The name of the cluster that ``make cluster-up`` and the demo use.
DEFAULT_NAME = os.environ.get("TASKQUEUE_CLUSTER", "taskqueue")

#: Where the kubeconfig of the default cluster is, in every checkout.
KUBECONFIG = CHECKOUT / ".devcluster" / "kubeconfig"

#: The description of the cluster's nodes, read by kind and by devcluster's replacement alike.
KIND_CONFIG = CHECKOUT / "kind-config.yaml"

#: Clusters belong to the machine, not to a user or a checkout: their subnets must not collide.
STATE = Path("/var/lib/taskqueue-devcluster")


def cache() -> Path:
    """Return the cache folder of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "taskqueue-devcluster"


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a short hash (16 hex digits) of the parts; where one part ends counts."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big"))
        whole.update(data)
    return whole.hexdigest()[:16]


def tree_digest(root: Path, *, ignore: Iterable[str] = ("__pycache__",)) -> str:
    """Return the hash of a file, or of a folder: names, executable bits and contents.

    Times and owners do not count, so two checkouts of one commit have the same hash.
    """
    ignored = set(ignore)
    parts: list[str | bytes] = []
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in files:
        relative = path.relative_to(root)
        if ignored.isdisjoint(relative.parts):
            parts += [str(relative), str(os.access(path, os.X_OK)), path.read_bytes()]
    return digest(parts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file beside ``path`` (it waits; it ends with the process)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
