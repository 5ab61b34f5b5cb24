"""The files of a multipart/form-data body (RFC 7578), collected in memory as its bytes come."""

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header


class BadForm(ValueError):
    """A body that is no such thing; the message says why."""


class TooManyFiles(ValueError):
    """More files than allowed have begun."""


class Files:
    """Feed it with `write`, then ask `whole`: (name, content) of each file, in order.

    Args: content_type: of the request; most: files. Raises BadForm, also for a part that is no file: an option that
    nobody reads must not seem to work; and TooManyFiles.
    """

    def __init__(self, content_type: str, most: int):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadForm("its Content-Type names no boundary")
        self._most, self._files, self._ended = most, [], False
        self._content = bytearray()
        self._header, self._value, self._disposition = b"", b"", b""
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        callbacks = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise BadForm(str(error)) from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadForm(str(error)) from None

    def whole(self) -> list[tuple[str, bytes]]:
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
            raise BadForm("it has a field that is no file: send nothing but images")
        if len(self._files) == self._most:
            raise TooManyFiles
        self._files.append((options[b"filename"].decode("utf-8", "replace"), self._content))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self._ended = True
