"""Every error a user can cause is an `OdnError`: what was wrong, with what value, and what to do."""

__all__ = [
    "BudgetError",
    "CertificateError",
    "ConfigError",
    "DataError",
    "ExportError",
    "InputError",
    "ModelError",
    "OdnError",
    "RunDirError",
    "StorageError",
    "TrainingError",
]


class OdnError(Exception):
    """Base of all errors that a user can cause and mend.

    The command line prints the message on one line, without a traceback, and exits with `exit_status`.

    Example:
        >>> from odn_hybrid import FitConfig, OdnError
        >>> try:
        ...     FitConfig(seed=-1)
        ... except OdnError as error:
        ...     print(error)
        seed is -1; it must be 0 to 2147483647
    """

    exit_status = 1
    #: Of a fit in several processes: another of them prints this error.
    elsewhere = False


class ConfigError(OdnError):
    """A choice (argument, recipe field) that does not exist or lies outside its range."""

    exit_status = 2


class DataError(OdnError):
    """A data set that is missing, malformed or unusable for classification."""


class ModelError(OdnError):
    """A model that is unknown, cannot be split into units, or does not fit the data."""


class InputError(OdnError):
    """Images handed to a finished model that it cannot take (shape, dtype, NaN)."""


class RunDirError(OdnError):
    """A run directory or saved model that is missing, damaged, occupied or of an unknown version."""


class ExportError(OdnError):
    """An export that cannot be made, or one that is missing, damaged or of an unknown version."""


class StorageError(OdnError):
    """The disk refused: full, read-only or not writable."""


class CertificateError(OdnError):
    """The promise asked for cannot be given; the message says why and what would be needed."""


class TrainingError(OdnError):
    """Training cannot go on, e.g. because the loss is no longer a number."""


class BudgetError(OdnError):
    """No depth satisfies the budget asked for."""
