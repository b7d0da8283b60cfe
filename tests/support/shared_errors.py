"""What a module that both ends import would declare."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import attrs


class Currency(Enum):
    EUR = "EUR"
    USD = "USD"


@dataclasses.dataclass
class FundsShort(Exception):
    """Made by dataclass."""

    needed: Decimal
    available: Decimal = Decimal(0)
    currency: Currency = Currency.EUR

    def __str__(self) -> str:
        return f"{self.needed - self.available} {self.currency.value} short"


@dataclasses.dataclass
class AccountClosed(FundsShort):
    """A subclass of it with one field more."""

    since: datetime | None = None


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Nothing can be assigned to it."""

    reason: str


@attrs.define(eq=True)
class Locked(Exception):
    """Made by attrs, with a private attribute that is public in `__init__`."""

    _by: UUID
    tries: list[int] = attrs.field(factory=list)


class NoSuchUser(LookupError):
    """Written by hand; keeps its fields as attributes."""

    def __init__(self, id: int, /, name: str = "?", *, tags: tuple[str, ...] = ()) -> None:
        super().__init__(f"no user {id} ({name})")
        self.id = id
        self.name = name
        self.tags = tags


class TooLate(Exception):
    """Written by hand; keeps its fields as arguments."""

    def __init__(self, hours: float, why: str = "") -> None:
        super().__init__(hours, why)


class Plain(ValueError):
    """Has no `__init__` of its own."""


class Keeps(Exception):
    """Cannot be built again: neither its attributes nor its arguments are its parameters."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no user {name}")
