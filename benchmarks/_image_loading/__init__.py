"""The parts of the image loading benchmark: pictures, contenders, one trial, its supervision, the summary."""
