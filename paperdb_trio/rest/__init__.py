"""REST: plain async functions from a request to a response, and the one table of routes that leads to them.

Law: no handler knows a socket or a framework; every door uses the same table. `routes` says which function in
`documents`, `changes`, `collections`, `tokens` or `pages` responds, and what `openapi` says about it.
"""
