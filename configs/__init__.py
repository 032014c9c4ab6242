"""Hydra configuration: YAML files only; a package so that they travel with the installed project."""
