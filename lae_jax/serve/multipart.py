"""A reader of multipart/form-data (RFC 7578): it collects the files of a body in memory as the bytes arrive."""

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

# Each beginning of a boundary costs the parser more work than the bytes that the limits count. A body has one for each
# file and one at its end; the parser also takes content that begins like a boundary, which photographs do by chance.
MOST_BOUNDARIES = 1_000


class BadForm(ValueError):
    """The body is not multipart/form-data of files; the message says why."""


class TooManyFiles(ValueError):
    """The body has more files than allowed."""


class Files:
    """The files of a body: pass its bytes to `write`, then call `whole`.

    A part that is not a file is refused, because an option that is never read must not seem to work.

    Args:
      content_type: Content-Type of the request.
      most: Most files in the body.

    Raises:
      BadForm: The content type is not multipart/form-data with a boundary.
    """

    def __init__(self, content_type: str, most: int):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadForm("its Content-Type has no boundary")
        self._most, self._files, self._ended = most, [], False
        self._delimiter, self._boundaries = b"\r\n--" + options[b"boundary"], 0
        self._content = bytearray()
        self._header, self._value, self._disposition = b"", b"", b""
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        callbacks = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise BadForm(str(error)) from None

    def write(self, chunk: bytes) -> None:
        """Reads the next bytes of the body.

        Raises:
          BadForm: They are malformed, or a part is not a file.
          TooManyFiles: One file more than allowed begins.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadForm(str(error)) from None
        self._boundaries += chunk.count(self._delimiter)
        if self._boundaries > MOST_BOUNDARIES:
            raise BadForm("its boundary occurs in the files: choose another")

    def whole(self) -> list[tuple[str, bytes]]:
        """Returns (name, content) of each file, in order.

        Raises:
          BadForm: The body is incomplete.
        """
        if not self._ended:
            raise BadForm("it ends before its last boundary")
        return [(name, bytes(content)) for name, content in self._files]

    def _part_begin(self) -> None:
        self._disposition = b""
        self._content = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            raise BadForm("it has a field that is not a file: send only images")
        if len(self._files) == self._most:
            raise TooManyFiles
        self._files.append((options[b"filename"].decode("utf-8", "replace"), self._content))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self._ended = True
