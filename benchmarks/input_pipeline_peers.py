"""The sides of `input_pipeline` that run in the peers' environment (make setup-peers); nothing of the project there.

Each is what its user would write: a data set of files, the transforms, a DataLoader that makes batches of uint8.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator

from benchmarks import input_pipeline_worker as worker

FOREVER = 1 << 40
AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)


def loaded(args, one: Callable) -> Iterator:
    """Batches of `one(file name)` as PyTorch users have them made: by a DataLoader's worker process."""
    import torch

    torch.set_num_threads(1)
    names = [str(path) for path in sorted(pathlib.Path(args.pictures).glob("*.jpg"))]

    class Faces(torch.utils.data.Dataset):
        def __len__(self):
            return FOREVER

        def __getitem__(self, i):
            return one(names[i % len(names)])

    return iter(torch.utils.data.DataLoader(Faces(), batch_size=args.batch, num_workers=1))


def pillow(args) -> Iterator:
    """torchvision's transforms on Pillow images."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.image_size, scale=AREA, ratio=ASPECT),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.125, 0.125, 0.125, 0.05),
            transforms.RandAugment(2, 9),
            transforms.PILToTensor(),
        ]
    )
    return loaded(args, lambda name: transform(Image.open(name).convert("RGB")))


def albumentations(args, filtered: bool = False) -> Iterator:
    """The same list of operations; OpenCV reads the files. filtered: against aliasing, as Pillow and we resize."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for its newest version
    import albumentations as A
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    how = cv2.INTER_AREA if filtered else cv2.INTER_LINEAR
    pixels = int(150 / 331 * 0.3 * args.image_size)
    nearest = {"interpolation": cv2.INTER_NEAREST, "p": 1}
    # RandAugment's fourteen at level 9 of 31; a range stands for the sign.
    operations = [
        A.NoOp(p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
        A.Rotate(limit=9, **nearest),
        A.Solarize(threshold_range=(0.7, 0.7), p=1),
        A.ColorJitter(brightness=0, contrast=0, saturation=(0.73, 1.27), hue=0, p=1),
        A.Posterize(num_bits=7, p=1),
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.27, p=1),
        A.RandomBrightnessContrast(brightness_limit=0.27, contrast_limit=0, p=1),
        A.Sharpen(alpha=(0.27, 0.27), lightness=(1, 1), p=1),
        A.Affine(shear={"x": (-5, 5), "y": 0}, **nearest),
        A.Affine(shear={"x": 0, "y": (-5, 5)}, **nearest),
        A.Affine(translate_px={"x": (-pixels, pixels), "y": 0}, **nearest),
        A.Affine(translate_px={"x": 0, "y": (-pixels, pixels)}, **nearest),
    ]
    transform = A.Compose(
        [
            A.RandomResizedCrop(size=(args.image_size, args.image_size), scale=AREA, ratio=ASPECT, interpolation=how),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.125, contrast=0.125, saturation=0.125, hue=0.05, p=1),
            A.SomeOf(operations, n=2, replace=True, p=1),
        ]
    )

    def one(name: str) -> np.ndarray:
        return transform(image=cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR_RGB))["image"]

    return loaded(args, one)


SIDES = {
    "pillow": pillow,
    "albumentations": albumentations,
    "albumentations_filtered": functools.partial(albumentations, filtered=True),
}

if __name__ == "__main__":
    worker.serve(SIDES)
