"""Proof on the user's own machine: stock modeling code against the overlaid one, on the same weights and inputs."""
