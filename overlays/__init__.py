"""What we change in transformers: recipes (why and how) and one folder of generated files per release line."""
