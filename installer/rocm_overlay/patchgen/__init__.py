"""Stock transformers source and recipes in, overlay source out. Needs libcst (extra ``gen``); never imports torch."""
