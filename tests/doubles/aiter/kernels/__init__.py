"""Arithmetic and preconditions of the double: fp32 inside, one rounding to the output dtype, as the chip does it."""
