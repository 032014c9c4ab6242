"""The one training loop, the losses, and the meta-learned modality weights."""
