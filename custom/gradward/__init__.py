"""GradWard: a federation that measures, while it trains, what its updates give away."""

__version__ = "0.1.0"
