"""The same application as a Ray Serve deployment: a replica per device, as many as the load asks for.

What batches is inside the replica; between machines there is only Ray's routing. Needs the extra `ray`; only
`odn serve --ray` imports `cluster`, which imports Ray.
"""
