"""Many runs of one config: which they are, how they are made side by side, what came of them."""
