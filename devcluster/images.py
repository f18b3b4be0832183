from pathlib import Path
from devcluster import archive as A, packages
from devcluster.locations import cache, locked
from devcluster.node_settings import PAUSE_IMAGE
import tempfile

def pause_archive() -> Path:
    target = cache() / "images" / "pause.tar"
    if target.exists(): return target
    with locked(target), tempfile.TemporaryDirectory() as t:
        layer = Path(t) / "layer.tar"
        A.write_single_file_layer(layer, Path(packages.find("catatonit")), "/pause")
        out = Path(t)/"o.tar"
        A.write_image(target, PAUSE_IMAGE, layer, {"Entrypoint": ["/pause", "-P"], "User": "65535:65535"})
    return target

def archive(tag: str) -> Path:
    raise NotImplementedError
