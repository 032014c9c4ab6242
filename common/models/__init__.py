"""Networks: encoders by modality kind, unimodal teachers, the multimodal student and its fusions."""
