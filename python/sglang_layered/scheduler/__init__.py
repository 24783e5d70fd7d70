"""The layered event loop inside SGLang's scheduler process. It knows requests and batches, no layers."""
