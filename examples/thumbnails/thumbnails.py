"""The worker's side: the handler `thumbnail`.

    python -m taskqueue worker thumbnails

A Task's payload names a photograph of the image's folder and says what is wanted of it:
`{"file": "coffee.png", "width": 192, "shape": "fit"}`. The thumbnail itself is the Task's result,
a JPEG in base64: small enough for a status, and nothing but the cluster is needed to get it back.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from taskqueue import Context, Fail, task

#: Where the image has the photographs.
PHOTOGRAPHS = Path(os.environ.get("THUMBNAILS_PHOTOGRAPHS", "/photographs"))

#: A result holds 16 KiB of JSON, and base64 turns 3 bytes into 4: this leaves room for the rest.
MAX_JPEG_BYTES = 11_500

#: JPEG qualities to choose from, and how many main colours to report.
QUALITIES = range(35, 96)
COLOURS = 5


class UnreadablePhotograph(Exception):
    """The file is there, but it is not a photograph, or not the whole of one."""


@task
def thumbnail(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Make one thumbnail.

    Args:
        payload: `file`, a name in the folder; `width`, the longer side in pixels; `shape`, `fit`
            (the whole photograph) or `square` (its middle).
        ctx: the attempt.

    Returns:
        The JPEG (`jpeg`, base64), its `sha256`, `bytes`, `quality`, `width` and `height`, the
        size of the `original`, its main `colours` and the `seconds` it took.

    Raises:
        Fail: there is no such file, which another attempt would not change.
        UnreadablePhotograph: the file cannot be decoded. It may be that somebody is still writing
            it, so the Task's retry policy decides how often to try.
    """
    begun = time.perf_counter()
    name, width, shape = payload["file"], int(payload["width"]), payload["shape"]
    path = PHOTOGRAPHS / Path(name).name
    if not path.is_file():
        raise Fail(f"there is no photograph {name!r}", type="NoSuchPhotograph")

    try:
        with Image.open(path) as opened:
            original = opened.size
            photograph = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError) as problem:
        raise UnreadablePhotograph(f"{name}: {problem}") from problem

    small = shrink(photograph, width, shape)
    jpeg, quality = encode(small)
    ctx.logger.info("thumbnail.made %s %dx%d, %d bytes", name, *small.size, len(jpeg))
    return {
        "file": name,
        "width": small.width,
        "height": small.height,
        "original": {"width": original[0], "height": original[1]},
        "colours": main_colours(small),
        "quality": quality,
        "bytes": len(jpeg),
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "seconds": round(time.perf_counter() - begun, 3),
        "jpeg": base64.b64encode(jpeg).decode("ascii"),
    }


def shrink(photograph: Image.Image, width: int, shape: str) -> Image.Image:
    """Return the photograph without its noise, resampled, and as sharp as it looked before."""
    quiet = photograph.filter(ImageFilter.MedianFilter(3))
    if shape == "square":
        small = ImageOps.fit(quiet, (width, width), Image.Resampling.LANCZOS)
    else:
        small = ImageOps.contain(quiet, (width, width), Image.Resampling.LANCZOS)
    return small.filter(ImageFilter.UnsharpMask(radius=1, percent=60, threshold=2))


def encode(image: Image.Image) -> tuple[bytes, int]:
    """Return the JPEG of the best quality that is small enough, and that quality.

    Raises:
        Fail: it is too large even at the lowest quality.
    """
    low, high = QUALITIES.start, QUALITIES.stop
    best = b""
    while low < high:
        quality = (low + high) // 2
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= MAX_JPEG_BYTES:
            best, low = buffer.getvalue(), quality + 1
        else:
            high = quality
    if not best:
        raise Fail(
            f"{image.width}x{image.height} pixels do not fit into {MAX_JPEG_BYTES} bytes: "
            "ask for a smaller width",
            type="TooLarge",
        )
    return best, low - 1


def main_colours(image: Image.Image) -> list[str]:
    """Return the main colours, most frequent first, as `#rrggbb`."""
    reduced = image.quantize(COLOURS, kmeans=2)
    palette, counts = reduced.getpalette() or [], reduced.histogram()
    order = sorted(range(COLOURS), key=counts.__getitem__, reverse=True)
    return ["#{:02x}{:02x}{:02x}".format(*palette[3 * i : 3 * i + 3]) for i in order if counts[i]]
