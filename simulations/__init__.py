"""Everything that exists to simulate and to reproduce; the only room that may import all others."""
