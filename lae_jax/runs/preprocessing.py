"""Turns a face crop into the model's input with Pillow."""

import dataclasses
import os

import numpy as np
from PIL import Image

from lae_jax.faces import MAX_KEPT_PIXELS, images
from lae_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Input:
    """The model's input: the whole crop resized to `resize` pixels, of which the centre is taken."""

    image_size: int
    resize: int = 0  # 0: image_size

    def pixels(self, crop: Image.Image | np.ndarray) -> np.ndarray:
        """Returns the input, uint8 (image_size, image_size, 3), as an evaluation makes it.

        Args:
          crop: RGB array, uint8 (H, W, 3), or a Pillow picture of any mode, which is read as its file would be.

        Raises:
          InputError: `crop` is the name of a file, an array of another kind or a picture that is damaged.
        """
        if isinstance(crop, Image.Image):
            try:
                crop = images.of_picture(crop)
            except images.BadImage as reason:
                raise InputError(f"a picture cannot be used: {reason}") from reason
        else:
            if isinstance(crop, (str, os.PathLike)):
                raise InputError(f"{crop} is the name of a file: open it with PIL.Image.open, or call lae_jax.predict")
            crop = np.asarray(crop)
            if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or not crop.size:
                raise InputError(f"an image is uint8 (H, W, 3), not {crop.dtype} {crop.shape}: convert it")
        side = self.resize or self.image_size
        if isinstance(crop, Image.Image) or crop.shape[:2] != (side, side):
            crop = crop if isinstance(crop, Image.Image) else Image.fromarray(crop)
            # One axis after the other: from Pillow 13 on, the shape decides which axis comes first. The width does, but
            # for pictures so narrow that they would become huge.
            is_narrow = side * crop.height > MAX_KEPT_PIXELS
            for size in ((crop.width, side) if is_narrow else (side, crop.height), (side, side)):
                crop = crop.resize(size, Image.Resampling.BICUBIC)
            crop = np.asarray(crop)
        first = (side - self.image_size) // 2
        return crop[first : first + self.image_size, first : first + self.image_size]
