"""The parts of decoding, timed one by one."""
