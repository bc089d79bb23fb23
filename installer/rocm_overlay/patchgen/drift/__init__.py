"""What a new transformers release does to the places that the recipes edit."""
