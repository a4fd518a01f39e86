"""Whether answers still look like those a certificate was earned on."""
