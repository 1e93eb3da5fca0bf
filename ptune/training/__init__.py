"""Training of a prefix: `ptune train`, its trainer, micro-batches, guard and log."""
