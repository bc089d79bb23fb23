"""What the commands print, one module per room; what they share is in `cli.output`."""
