"""The ops, one family to a file: the formula in torch and in eager form, its tiers, the public function."""
