"""The photographs: those inside the scikit-image package, and one of them cut in the middle.

scikit-image can download more; only files of its wheel are used here, so nothing needs the
network. The documentation of `skimage.data` has the source of each.
"""

import importlib.util
import shutil
from pathlib import Path

#: The photographs of the package; it has drawings as well, which are left out.
FILES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)

#: The file that really is broken, and the photograph that it is the first half of.
BROKEN = "motorcycle_right-cut.png"
BROKEN_FROM = "motorcycle_right.png"


class MissingPhotographs(Exception):
    """scikit-image is not installed, or has no such files; the text says what to do."""


def folder() -> Path:
    """Return the folder of the package's data, without importing the package.

    Raises:
        MissingPhotographs: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPhotographs(
            "scikit-image, whose photographs the demo uses, is not installed: "
            "pip install -c constraints.txt -e '.[dev,demo]'"
        )
    return Path(spec.submodule_search_locations[0], "data")


def copy_to(target: Path) -> None:
    """Put the photographs and the broken file into a folder.

    Raises:
        MissingPhotographs: the installed scikit-image lacks one of them.
    """
    source = folder()
    missing = [name for name in (*FILES, BROKEN_FROM) if not (source / name).is_file()]
    if missing:
        raise MissingPhotographs(
            f"the installed scikit-image has no {', '.join(missing)} in {source.name}/: "
            "install the version of constraints.txt"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    whole = (source / BROKEN_FROM).read_bytes()
    (target / BROKEN).write_bytes(whole[: len(whole) // 2])
