"""Speech corpora as NeMo manifests: fetched from their official addresses, or made here."""

__all__: list[str] = []  # import the modules: each loads only what it needs
