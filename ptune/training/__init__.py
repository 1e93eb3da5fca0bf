"""One run of `ptune train`, from settings to a finished prefix."""
