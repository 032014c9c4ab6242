"""MIND's three multi-class sets, CREMA-D, S-MNIST and LUMA: readers of the official layouts, generated twins, and sites."""
