"""COCO's instances JSON of scenes."""

from collections.abc import Mapping
from typing import Any

from mfpo.masks import encode_mask
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.scenes import SIDE, Scene, draw_scene


def coco_instances(scenes: Mapping[str, Scene]) -> dict[str, Any]:
    """The instances of scenes, each of which is the image of the file name that is its key."""
    names = list(KINDS)
    images = [
        {"id": number, "file_name": name, "height": SIDE, "width": SIDE} for number, name in enumerate(scenes, start=1)
    ]
    annotations = [
        {"image_id": image["id"], "category_id": names.index(kind), "segmentation": encode_mask(mask)}
        for image in images
        for kind, mask in draw_scene(scenes[str(image["file_name"])])[1].items()
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}
