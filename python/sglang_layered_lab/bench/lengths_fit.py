"""A lognormal distribution of lengths, fitted exactly from two of its figures. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

Z90 = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp of a normal with mean `mu` and standard deviation `sigma` > 0."""

    mu: float
    sigma: float

    @classmethod
    def fit(cls, *, mean: float | None, p50: float | None, p90: float | None) -> Lognormal:
        """Fit exactly two of mean, median and 90 % quantile, all in tokens.

        p50 = exp(mu), p90 = exp(mu + Z90 sigma), mean = exp(mu + sigma^2 / 2). From mean and p90 two sigmas
        follow; the smaller is taken.

        Raises:
            ValueError: not two are given, or no such distribution exists; the text says which.
        """
        if sum(figure is not None for figure in (mean, p50, p90)) != 2:
            raise ValueError("give exactly two of mean_tokens, p50_tokens, p90_tokens")
        if p50 is not None:
            other, name = (p90, "p90_tokens") if mean is None else (mean, "mean_tokens")
            assert other is not None
            if other <= p50:
                raise ValueError(f"{name} must be above p50_tokens")
            ratio = math.log(other / p50)
            return cls(math.log(p50), ratio / Z90 if mean is None else math.sqrt(2 * ratio))
        assert mean is not None and p90 is not None
        root = Z90**2 + 2 * math.log(mean / p90)
        if mean >= p90 or root < 0:
            least = math.exp(-(Z90**2) / 2)
            raise ValueError(f"mean_tokens must be between {least:.2f} and 1 times p90_tokens")
        sigma = Z90 - math.sqrt(root)
        return cls(math.log(p90) - Z90 * sigma, sigma)

    @property
    def mean(self) -> float:
        """Mean of the whole distribution, in tokens."""
        return math.exp(self.mu + self.sigma**2 / 2)

    def draw(self, uniform: float, low: int, high: int | None) -> int:
        """Length at the quantile `uniform` in [0, 1) of the distribution cut to [low, high] tokens.

        Inversion: one number in, one length out, so a limit shifts no later draw.
        """
        bottom = self._below(low - 0.5)
        top = 1.0 if high is None else self._below(high + 0.5)
        share = min(max(bottom + uniform * (top - bottom), 1e-15), 1 - 1e-15)
        tokens = round(math.exp(NormalDist(self.mu, self.sigma).inv_cdf(share)))
        return max(low, tokens if high is None else min(tokens, high))

    def _below(self, tokens: float) -> float:
        return NormalDist(self.mu, self.sigma).cdf(math.log(tokens))
