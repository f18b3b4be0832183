"""``python -m tests.faults``: what was broken once, tried from outside on any image.

Each row makes one of the faults happen by kubectl, AMQP or a handler image, in a namespace and a
virtual host of its own, and says what was seen. The operator of the cluster is replaced by the
image. With ``--commit`` the image is built from that commit first, and installed with its manifests
and CRDs. Exit code 1: a row is red.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from devcluster import images
from devcluster.cluster import open_cluster
from devcluster.paths import DEFAULT_NAME, KUBECONFIG
from tests.commits import sources
from tests.faults.install import install, settle
from tests.faults.rows import (
    ROWS,
    Row,
    edits,
    endpoints,
    handlers,
    messages,
    objects,
    takeovers,
    tenants,
)
from tests.faults.rows.site import Installation, site

#: Modules that fill the table.
_SECTIONS = (messages, objects, tenants, endpoints, edits, takeovers, handlers)
#: Checkouts that try theirs on clusters of their own, side by side, share the store of images.
_IMAGE = f"taskqueue-operator:faults-{DEFAULT_NAME}"


@dataclass(frozen=True)
class Seen:
    """What became of a row."""

    row: Row
    green: bool
    seen: str


def main() -> int:
    """Try the rows, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", default=_IMAGE, help="to build and try")
    parser.add_argument("--commit", help="build the image from this commit (default: the checkout)")
    parser.add_argument("--rows", default="", help="names or sections, by commas (default: all)")
    parser.add_argument("--beside", type=int, default=3, help="rows at a time (default: 3)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    try:
        rows = in_order([name for name in options.rows.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    with sources(options.commit) as tree:
        images.build_operator(options.image, tree)
        cluster = open_cluster(DEFAULT_NAME, KUBECONFIG, with_images=False)
        at = install(cluster, options.image, tree)
        found = try_all(at, rows, options.beside)
    table = markdown(found)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    return int(not all(each.green for each in found))


def in_order(names: list[str]) -> list[Row]:
    """Return the rows of these names or sections, all of them for none, by section and number.

    Raises:
        ValueError: there is no such row.
    """
    sections = {name[0] for name in ROWS}
    for name in names:
        if name not in ROWS.keys() | sections:
            raise ValueError(f"no row is called {name}: there are {', '.join(sorted(ROWS))}")
    wanted = [row for name, row in ROWS.items() if not names or {name, name[0]} & set(names)]
    return sorted(wanted, key=lambda row: (row.name[0], int(row.name[1:])))


def try_all(at: Installation, rows: list[Row], beside: int) -> list[Seen]:
    """Try rows side by side, and those that disturb others after them; in their order."""
    with ThreadPoolExecutor(beside) as pool:
        found = list(pool.map(lambda row: _try(at, row), [row for row in rows if not row.alone]))
    for row in rows:
        if row.alone:
            settle(at.kubectl)
            found.append(_try(at, row))
    return sorted(found, key=lambda each: rows.index(each.row))


def _try(at: Installation, row: Row) -> Seen:
    begin = time.monotonic()
    try:
        with site(at) as place:
            seen = Seen(row, True, row.attempt(place))
    except AssertionError as failure:
        seen = Seen(row, False, str(failure))
    except Exception as failure:  # the row itself could not be tried: that is no green one
        traceback.print_exc()
        seen = Seen(row, False, f"not tried: {failure!r}")
    color = "green" if seen.green else "RED"
    print(
        f"{row.name}: {color} after {time.monotonic() - begin:.0f} s: {_line(seen.seen)}",
        flush=True,
    )
    return seen


def markdown(found: list[Seen]) -> str:
    """Return the table."""
    lines = ["| row | input | expected | seen | |", "|---|---|---|---|---|"]
    for each in found:
        row, color = each.row, "green" if each.green else "**red**"
        cells = (row.name, _line(row.input), _line(row.expected), _line(each.seen), color)
        lines.append(f"| {' | '.join(cells)} |")
    green = sum(each.green for each in found)
    return "\n".join([*lines, "", f"{green} of {len(found)} rows are green.", ""])


def _line(text: str) -> str:
    return " ".join(text.split())[:240].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
