"""Device, precision, and memory of device and host."""
