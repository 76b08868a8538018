"""Several runs side by side: defences or settings, their leakage and their accuracy."""
