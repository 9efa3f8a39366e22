"""An image of a data set as a small PNG inside a page."""

import base64
import io
from typing import Any

import numpy as np
from torch import Tensor

from feedfwd.errors import DataError

LONGEST_SIDE = 96  # pixels; a larger image is reduced, for a report holds some twenty of them


def data_uri(image: Any) -> str:
    """`data:image/png;base64,…` of (H, W), (H, W, 1 or 3) or torch's (1 or 3, H, W).

    uint8 is taken as it is; any other type is stretched from its own darkest to its own brightest value, so that
    standardised inputs show too. DataError when the shape is none of these.

    >>> data_uri(np.zeros((8, 8), np.uint8))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image  # a few tens of ms, needed only where there are pictures

    pixels = image.detach().cpu().float().numpy() if isinstance(image, Tensor) and image.is_floating_point() else image
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)):
        raise DataError(f"an image of the shape {np.shape(image)}", hint="(H, W), (H, W, 1 or 3) or (1 or 3, H, W)")
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float64)
        dark, bright = pixels.min(), pixels.max()
        pixels = ((pixels - dark) * (255 / (bright - dark if bright > dark else 1))).round().astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
