"""A JSON file read value by value: files of any size in memory of a few MB, with Python's own parser for each value.

For an object of many members, such as the results of a submission: `members` gives their keys one after another, and
`value` the value that follows. Costs what json.load costs; errors name the file and the character.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cache.errors import StoreError

CHUNK = 4 << 20
_SPACE = " \t\n\r"
_CUT = 64  # characters before the end of the text at hand within which a value that was cut looks like a wrong one
_UNENDED = "Unterminated string"
_KINDS = {"{": "an object", "[": "a list", '"': "a string", "t": "true", "f": "false", "n": "null"}


class JsonStream:
    """Reads one JSON document from `file`; what: it should be, for errors, all of which are StoreErrors."""

    def __init__(self, file: BinaryIO, path: Path, what: str) -> None:
        self._file, self._path, self._what = file, path, what
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._before, self._ended = "", 0, 0, False
        if self._peek() == "\ufeff":
            raise self._error("it begins with a byte-order mark, which JSON has not; save it as plain UTF-8")
        if not self._peek():
            raise self._error("the file is empty")

    def kind(self) -> str:
        """What comes next: "an object", "a list", "a string", "a number", ..., "nothing" at the end."""
        symbol = self._peek()
        if symbol and symbol in "-0123456789":
            return "a number"
        return _KINDS.get(symbol, f"{symbol!r}, which begins nothing in JSON") if symbol else "nothing"

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next, in order; the caller takes each value before it asks for more."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            if self._peek() != '"':
                raise self._error("a key is missing")
            key = self.value()
            self._take(":")
            yield key
            symbol = self._peek()
            self._take("}" if symbol == "}" else ",")
            if symbol == "}":
                return

    def value(self) -> Any:
        """The whole value that comes next, as json.loads gives it."""
        self._peek()
        while True:
            try:
                found, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    cut = error.pos >= len(self._text) or error.msg.startswith(_UNENDED)
                    raise self._error("the file ends within a value" if cut else error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # more digits, or more brackets, than Python takes
                raise self._error(str(error)) from None
            else:
                if end + 2 < len(self._text) or self._ended:  # else a number might go on: after "1" comes "e+5"
                    self._at = end
                    return found
            self._fill()

    def end(self) -> None:
        """Raises where more than space follows."""
        if self._peek():
            raise self._error("more follows the end of the document")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.pos > len(self._text) - _CUT or error.msg.startswith(_UNENDED)

    def _peek(self) -> str:
        """The next character that is not space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill()

    def _take(self, symbol: str) -> None:
        if self._peek() != symbol:
            found = self._peek()
            raise self._error(f"found {found!r}, expected {symbol!r}" if found else f"it ends before {symbol!r}")
        self._at += 1

    def _fill(self) -> None:
        """Reads on: as much as is left over, so that a long value is tried a few times only."""
        left = self._text[self._at :]
        try:
            data = self._file.read(max(CHUNK, len(left)))
            self._ended = not data
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8: {error.reason}", len(self._text)) from None
        self._before += self._at
        self._text, self._at = left + more, 0

    def _error(self, problem: str, at: int | None = None) -> StoreError:
        place = self._before + (self._at if at is None else at)
        return StoreError(f"{self._path}: not readable as {self._what} ({problem}, at character {place})")
