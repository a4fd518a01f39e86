"""One optimizer step: optimizer, targets, average of the weights."""
