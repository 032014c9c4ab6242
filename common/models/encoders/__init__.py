"""Encoders: one module per modality kind; every module here is found by the registry."""
