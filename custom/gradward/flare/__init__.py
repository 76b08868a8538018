"""GradWard's components for NVFlare; the only package that imports ``nvflare``."""
