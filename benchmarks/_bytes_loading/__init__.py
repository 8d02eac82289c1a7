"""The parts of ``bytes_loading.py``."""
