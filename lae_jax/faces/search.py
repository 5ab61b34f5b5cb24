"""How photographs are searched for faces: checks of the choices, before anything is loaded."""

from lae_jax.faces import SMALLEST
from lae_jax.runtime.errors import InputError, require_whole_numbers


def check(is_searched: bool, smallest_face: int | None, rotate: bool) -> None:
    """Checks how photographs are searched for faces, as in `crops.Recipe`.

    Args:
      is_searched: False: the images are face crops.
      smallest_face: Side of the smallest face.
      rotate: Whether photographs are turned.

    Raises:
      InputError: `smallest_face` is not a number of pixels or too small, or one of the two is given for face crops.
    """
    require_whole_numbers(smallest_face=smallest_face)
    if smallest_face is not None and smallest_face < SMALLEST:
        raise InputError(f"--smallest-face must be at least {SMALLEST} pixels, got {smallest_face}")
    if not is_searched and (rotate or smallest_face is not None):
        flag = "--rotate" if rotate else "--smallest-face"
        raise InputError(f"{flag} is for photographs, and the images are face crops: omit it")
