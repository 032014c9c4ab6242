"""How good the predictions are: metrics for every pattern, and how sure one can be of them."""
