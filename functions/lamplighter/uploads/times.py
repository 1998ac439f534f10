"""Understands the times of Moodle's logs, which are written as the reader's language writes them.

A log says neither its language nor its time zone, so a time stays local. Understood are the formats of the language
packs (`strftimedatetimeshort`, `strftimedatetimeshortaccurate`, `strftimedatetime` of `langconfig.php`), such as
`12/03/24, 14:05`, `12.03.2024 14:05`, `12 mars 24, 14:05`, `3 March 2024, 2:05 PM`, `24年 03月 12日 14:05`.

Whether 12/03/24 is in March or in December no single row tells. The day comes first, as in every pack but the American,
until a row has a date that only the other order makes possible and none has shown that ours is right: then the whole
file is read again in that order (`Misread`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, Literal

Order = Literal["dmy", "mdy", "ymd"]
"""In which order a date of three short numbers is written."""

KEPT: Final = 20_000
"""Different times that are remembered; many rows share the minute."""

_MINUTES: Final = frozenset(f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(60))
_SECONDS: Final = frozenset(["", *(f":{second:02}" for second in range(60))])

_CLOCK: Final = re.compile(
    r"[\s,،、T]*?(\d{1,2})[:.h](\d{2})(?:[:.](\d{2}))?\s*(?:([ap])\.?\s?m\.?|(上午|下午)|([صم]))?$", re.IGNORECASE
)
_TOKEN: Final = re.compile(r"\d+|[^\W\d_]+")
_MONTHS: Final = """
january february march april may june july august september october november december
januar februar märz april mai juni juli august september oktober november dezember
janvier février mars avril mai juin juillet août septembre octobre novembre décembre
enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre
janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro
gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre
gener febrer març abril maig juny juliol agost setembre octubre novembre desembre
januari februari maart april mei juni juli augustus september oktober november december
januari februari mars april maj juni juli augusti september oktober november december
января февраля марта апреля мая июня июля августа сентября октября ноября декабря
"""


def _plain(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))


_WORDS_BETWEEN: Final = frozenset(map(_plain, ("de", "del", "às", "à", "a", "las", "um", "m", "d", *"年月日년월일")))


def _months_by_beginning() -> dict[str, int]:
    """The months by their names and every beginning of three letters or more that can mean one month only."""
    meanings: dict[str, set[int]] = {"mrt": {3}, "mrz": {3}}
    for names in _MONTHS.strip().splitlines():
        for number, name in enumerate(map(_plain, names.split()), start=1):
            for length in range(3, len(name) + 1):
                meanings.setdefault(name[:length], set()).add(number)
    return {word: numbers.pop() for word, numbers in meanings.items() if len(numbers) == 1}


_MONTH_OF: Final = _months_by_beginning()


class Misread(Exception):
    """What was guessed of the file has proved wrong: read it again from its beginning as `order` or `encoding` says."""

    def __init__(self, *, order: Order | None = None, encoding: str | None = None) -> None:
        super().__init__(order or encoding)
        self.order = order
        self.encoding = encoding


def parse(text: str, order: Order) -> str | None:
    """The time as ISO-8601 to the second without a zone, or None where it cannot be understood."""
    text = text.strip()
    clock = _CLOCK.search(text)
    date = _date(text[: clock.start()], order) if clock else None
    if clock is None or date is None:
        return None
    hour, minute, second = (int(part or 0) for part in clock.group(1, 2, 3))
    half = (clock[4] or clock[5] or clock[6] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            half = ""  # some packs write 14:05 PM
        else:
            hour = hour % 12 + (12 if half in ("p", "下午", "م") else 0)
    try:
        return datetime(*date, hour, minute, second).isoformat()  # noqa: DTZ001 - the log does not say its zone
    except ValueError:
        return None


def _date(text: str, order: Order) -> tuple[int, int, int] | None:
    """Year, month and day of a date in words or numbers."""
    tokens = _TOKEN.findall(text)
    numbers = [token for token in tokens if token.isdecimal()]
    words = [word for token in tokens if not token.isdecimal() and (word := _plain(token)) not in _WORDS_BETWEEN]
    if len(numbers) == 3 and not words:
        return _from_numbers(numbers, order)
    if len(numbers) == 2 and len(words) == 1 and words[0] in _MONTH_OF:
        year, day = numbers if len(numbers[0]) == 4 else reversed(numbers)
        return _year(year), _MONTH_OF[words[0]], int(day)
    return None


def _from_numbers(numbers: Sequence[str], order: Order) -> tuple[int, int, int]:
    first, second, third = numbers
    if len(first) == 4 or (order == "ymd" and len(third) != 4):
        return _year(first), int(second), int(third)
    if order == "mdy":
        return _year(third), int(first), int(second)
    return _year(third), int(second), int(first)


def _year(text: str) -> int:
    return int(text) + (2000 if len(text) <= 2 else 0)


class Times:
    """The times of one file.

    Args:
        order: how its dates are written.
        other: how else they may be, until a row proves `order`; None if there is no doubt.
    """

    def __init__(self, order: Order, other: Order | None) -> None:
        self._order = order
        self._other = other
        self._known: dict[str, str] = {}
        self._days: dict[str, str] = {}

    def read(self, texts: Collection[str]) -> list[str]:
        """Each time in ISO-8601, or an empty string where it cannot be understood.

        Raises:
            Misread: the dates are in the other order.
        """
        known = self._known
        for text in {*texts}:
            if text not in known:
                if len(known) >= KEPT:
                    known = self._known = {one: known[one] for one in {*texts} & known.keys()}
                known[text] = self._parsed(text)
        return list(map(known.__getitem__, texts))

    def _parsed(self, text: str) -> str:
        """As `parse`; a day that is known already, with a plain clock behind it, costs a tenth."""
        day, _, clock = text.rpartition(" ")
        plain = clock[:5] in _MINUTES and clock[5:] in _SECONDS
        if plain and day in self._days:
            return f"{self._days[day]}T{clock}" + ":00" * (len(clock) == 5)
        ours = parse(text, self._order)
        if self._other:
            theirs = parse(text, self._other)
            if ours and not theirs:
                self._other = None
            elif theirs and not ours:
                raise Misread(order=self._other)
        if ours and plain:
            self._days[day] = ours[:10]
        return ours or ""
