"""The domain: values and decisions. No I/O, no waiting, no clock, no chance, no logging."""
