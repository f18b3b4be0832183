"""What a program in a worker's pod can read; mounted beside the handlers, and runs alone."""

import glob
import json
import os
from typing import Any

_PLACES = (
    "/proc/[0-9]*/environ",
    "/proc/[0-9]*/root/etc/taskqueue/broker/*",
    "/etc/taskqueue/broker/*",
    "/etc/taskqueue/broker/..*/*",
)


def look() -> dict[str, Any]:
    """Return the texts that can be read, and how many files were read and refused."""
    texts, read, refused = {f"{name}={value}" for name, value in os.environ.items()}, 0, 0
    for path in (found for place in _PLACES for found in glob.glob(place)):
        try:
            with open(path, "rb") as file:
                texts |= set(file.read(4096).decode(errors="replace").split("\0"))
            read += 1
        except OSError:
            refused += 1
    return {"texts": sorted(texts), "read": read, "refused": refused}


if __name__ == "__main__":
    print(json.dumps(look()))
