"""The device, the precision and the memory to compute with."""
