"""Every error this package raises on purpose.

LayeredPrefillError
├── ConfigError          a flag or field is wrong; the message names it and the remedy
├── UnsupportedError     a combination that layered mode refuses; names the flag, the reason, the remedy
├── PlanError            layer groups that do not tile the model
├── CohortError          a cohort asked to do what its state forbids
├── InvariantError       the invariant checker found the KV pool and the ledger apart
├── PatchError           the patch set cannot be applied, reverted or verified
├── CpuKernelError       a CPU reference kernel that is missing or was called wrongly
├── KernelError          a kernel was called wrongly, or cannot run or be timed here
├── ModelRecipeError     `make-model` or `calibrate-router` was asked for something it cannot make
├── QuickstartError      the quickstart cannot go on
├── BenchError           a benchmark's spec, record or trace cannot be used
├── EnergyError          an energy source cannot be read
├── TopError             `top` cannot read a server's metrics page
├── MonitoringError      a Prometheus cannot be asked, or the dashboard cannot be written or drawn
└── GpuHostError         a bundle cannot be made, or a stage of the GPU suite cannot go on
"""


class LayeredPrefillError(Exception):
    """Base of all errors of this package."""


class ConfigError(LayeredPrefillError, ValueError):
    """A flag or field holds a bad value."""


class UnsupportedError(LayeredPrefillError, ValueError):
    """Layered mode refuses this combination of flags or this model."""


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


class QuickstartError(LayeredPrefillError, RuntimeError):
    """The quickstart cannot go on."""


class BenchError(LayeredPrefillError, ValueError):
    """A benchmark's spec, record or trace cannot be used."""


class EnergyError(LayeredPrefillError, RuntimeError):
    """An energy source cannot be read."""


class TopError(LayeredPrefillError, RuntimeError):
    """`top` cannot read a server's metrics page."""


class MonitoringError(LayeredPrefillError, RuntimeError):
    """A Prometheus cannot be asked, or the dashboard cannot be written or drawn."""


class GpuHostError(LayeredPrefillError, RuntimeError):
    """A bundle cannot be made, or a stage of the GPU suite cannot go on."""
