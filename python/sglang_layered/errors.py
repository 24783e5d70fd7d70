"""Every error that this package raises on purpose; all are a LayeredPrefillError."""


class LayeredPrefillError(Exception):
    """Base of all errors of this package."""


class ConfigError(LayeredPrefillError, ValueError):
    """A flag or field holds a bad value; the message names it and the remedy."""


class UnsupportedError(LayeredPrefillError, ValueError):
    """Layered mode refuses this combination of flags or this model; the message has reason and remedy."""


class PlanError(LayeredPrefillError, ValueError):
    """Layer groups do not tile the model."""


class CohortError(LayeredPrefillError, RuntimeError):
    """A cohort was asked to do what its state forbids."""


class InvariantError(LayeredPrefillError, AssertionError):
    """The KV pool and the ledger disagree."""


class PatchError(LayeredPrefillError, RuntimeError):
    """The patch set cannot be applied, reverted or verified."""


class CpuKernelError(LayeredPrefillError, NotImplementedError):
    """A CPU reference kernel is missing or was called wrongly."""


class KernelError(LayeredPrefillError, ValueError):
    """A kernel was called wrongly, or cannot run or be timed here."""


class ModelRecipeError(LayeredPrefillError, ValueError):
    """`make-model` or `calibrate-router` was asked for something it cannot make."""


class BenchError(LayeredPrefillError, ValueError):
    """A benchmark's spec, record or trace cannot be used."""


class EnergyError(LayeredPrefillError, RuntimeError):
    """An energy source cannot be read."""


class LabError(LayeredPrefillError, RuntimeError):
    """A command of the laboratory cannot go on: it cannot read, ask, make or draw what it needs."""
