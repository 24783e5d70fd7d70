"""SGLang 0.5.23, where it differs from other releases that are served. Read in its source; not yet served."""
