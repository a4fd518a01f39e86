"""The process that serves: its parts put together, its connections limited, its signals obeyed.

`server` runs uvicorn, `service` is everything behind it, `gate` and `connections` keep out what may not come
in. Needs the extra `serve`; only `odn serve` imports them.
"""
