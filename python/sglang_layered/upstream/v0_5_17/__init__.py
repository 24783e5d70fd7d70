"""SGLang 0.5.17, where it differs from other releases that are served."""
