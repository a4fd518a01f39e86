"""Static models: which exit, and the backbone cut down to it as a plain module."""
