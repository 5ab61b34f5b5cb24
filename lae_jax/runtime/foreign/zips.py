"""Archives of strangers (.keras, .npz): a member is read only if it is stored plainly and is as large as it may be."""

import math
import zipfile
import zlib

import numpy as np

# What a damaged member raises when it is read.
ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_PLAIN, _ENCRYPTED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 1
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def require_plain(archive: zipfile.ZipFile, name: str, most: int) -> None:
    """Checks a member by its header, before it is unpacked.

    Args:
      archive: The archive.
      name: Name of the member.
      most: Most bytes that it may unpack to.

    Raises:
      KeyError: There is no such member.
      ValueError: It is larger, encrypted, or compressed in a way that neither numpy nor Keras uses.
    """
    member = archive.getinfo(name)
    if member.file_size > most:
        raise ValueError(f"it claims {member.file_size} bytes of {name}; more than {most} are not read")
    if member.flag_bits & _ENCRYPTED or member.compress_type not in _PLAIN:
        raise ValueError(f"{name} is encrypted, or compressed by another method than deflate")


def array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """Reads an array of a .npz. numpy itself would first allocate what the header of the array claims.

    Args:
      archive: The archive.
      name: Name of the member, with .npy.
      most: Most bytes of the member.

    Raises:
      ERRORS: The member is damaged, larger, or an array of objects.
    """
    require_plain(archive, name, most)
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has the version {version} of its format")
        shape, is_fortran, dtype = _HEADERS[version](file)
        content = bytearray(file.read())
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) or min(shape, default=0) < 0:
        raise ValueError(f"{name} has {len(content)} bytes for {dtype} of shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
