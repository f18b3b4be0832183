"""The contact sheet: all thumbnails of a run on one picture, each photograph with its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from examples.thumbnails.work import ICON, PREVIEW

_COLUMNS = 5
_MARGIN, _GAP, _INSET = 40, 28, 12
_HEADER, _CAPTION = 96, 56
_CELL = (2 * _INSET + PREVIEW.width + _INSET + ICON.width, _INSET + PREVIEW.width + _CAPTION)

_BACKGROUND, _CARD, _WELL = "#14161a", "#1f2329", "#181b20"
_TEXT, _DIM, _RED = "#e8eaed", "#98a0ab", "#ff6b6b"


@dataclass(frozen=True, slots=True)
class Entry:
    """One photograph of the sheet: its thumbnails and what their results say, or an error."""

    file: str
    preview: bytes | None = None
    icon: bytes | None = None
    result: Mapping[str, Any] | None = None
    error: str = ""


def draw(entries: Sequence[Entry], *, subtitle: str) -> Image.Image:
    """Return the sheet."""
    rows = -(-len(entries) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * _CELL[0] + (_COLUMNS - 1) * _GAP
    height = _MARGIN + _HEADER + rows * _CELL[1] + (rows - 1) * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), "Thumbnails", _TEXT, _font(36))
    pen.text((_MARGIN, _MARGIN + 44), subtitle, _DIM, _font(18))
    for place, entry in enumerate(entries):
        row, column = divmod(place, _COLUMNS)
        left = _MARGIN + column * (_CELL[0] + _GAP)
        top = _MARGIN + _HEADER + row * (_CELL[1] + _GAP)
        _draw_entry(sheet, entry, left, top)
    return sheet


def save(entries: Sequence[Entry], path: Path, *, subtitle: str) -> None:
    """Draw the sheet and write it as PNG."""
    draw(entries, subtitle=subtitle).save(path, optimize=True)


def _draw_entry(sheet: Image.Image, entry: Entry, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.rounded_rectangle((left, top, left + _CELL[0] - 1, top + _CELL[1] - 1), 10, _CARD)
    x, y = left + _INSET, top + _INSET
    side = left + _INSET + PREVIEW.width + _INSET
    well = (x, y, x + PREVIEW.width - 1, y + PREVIEW.width - 1)
    pen.rectangle(well, _WELL)
    if entry.preview is not None:
        _paste(sheet, entry.preview, x, y, PREVIEW.width)
    if entry.icon is not None:
        _paste(sheet, entry.icon, side, y, ICON.width)
    if entry.result is not None:
        _draw_data(pen, entry.result, side, y + ICON.width + 10)
    if entry.error:
        pen.line((well[0] + 56, well[1] + 56, well[2] - 56, well[3] - 56), _RED, 6)
        pen.line((well[0] + 56, well[3] - 56, well[2] - 56, well[1] + 56), _RED, 6)
    below = y + PREVIEW.width + 6
    pen.text((x, below), entry.file, _RED if entry.error else _TEXT, _font(15))
    pen.text((x, below + 19), _second_line(entry), _DIM, _font(13))


def _draw_data(pen: ImageDraw.ImageDraw, result: Mapping[str, Any], x: int, y: int) -> None:
    swatch = (ICON.width - 4 * 4) // 5
    for number, colour in enumerate(result.get("colours", ())[:5]):
        start = x + number * (swatch + 4)
        pen.rounded_rectangle((start, y, start + swatch, y + swatch), 3, colour)
    facts = (
        f"quality {result['quality']}",
        f"{result['bytes'] / 1000:.1f} kB",
        f"{result['seconds'] * 1000:.0f} ms",
    )
    for number, fact in enumerate(facts):
        pen.text((x, y + swatch + 10 + 18 * number), fact, _DIM, _font(13))


def _second_line(entry: Entry) -> str:
    if entry.error or entry.result is None:
        return entry.error
    result = entry.result
    original = result["original"]
    return f"{original['width']} x {original['height']}  to  {result['width']} x {result['height']}"


def _paste(sheet: Image.Image, data: bytes, left: int, top: int, size: int) -> None:
    with Image.open(BytesIO(data)) as picture:
        sheet.paste(
            picture, (left + (size - picture.width) // 2, top + (size - picture.height) // 2)
        )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
