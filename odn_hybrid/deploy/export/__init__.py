"""Models as files for other runtimes; each is run and compared with the model before it counts as written."""
