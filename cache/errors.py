"""The errors a user may see. Each message is one line: what was found, what was expected, what to do."""

from __future__ import annotations


class BevcaskError(Exception):
    """Base of every error that is the input's or the environment's fault; the command line prints it, no traceback.

    exit_status: of the task that ends in it.
    """

    exit_status: int = 1


class DataError(BevcaskError):
    """A raw data file or table is missing, truncated, or says something impossible."""


class StoreError(BevcaskError):
    """A store is missing, incomplete, corrupt, or not what the caller needs."""


class CorruptError(StoreError):
    """Bytes of a store do not match their recorded length or checksum, or do not parse."""


class FingerprintError(StoreError):
    """Two things that must agree (stores, plan, recipe) do not; the message names both values."""


class ConfigError(BevcaskError):
    """A recipe, preset or option is unknown or has an impossible value."""


class OutOfSpaceError(BevcaskError):
    """The disk is full or a quota is reached; what had been committed stays valid."""
