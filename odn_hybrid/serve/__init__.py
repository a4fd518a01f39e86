"""The inference server: answers leave as soon as they are ready, and the device never runs half-empty.

`stages` runs segments of one model on a device, `scheduling` decides which of them to run next and on which
inputs, `hosting` keeps several models, `app` speaks HTTP.
"""
