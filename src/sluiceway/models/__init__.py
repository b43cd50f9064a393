"""Calls to models: wire formats, one HTTP transport, recorded and local answers, and the pool that joins them.

The only importer of httpx and aiohttp. What an endpoint does wrong leaves this package as a Failure.
"""
