"""Training through overlaid models: gradients, curves, memory, and the tools around."""
