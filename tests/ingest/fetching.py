"""Fetch some URLs as a worker would."""

import asyncio

from ingest.config import FetchConfig
from ingest.fetch import Fetched, Fetcher


def fetch(*urls: str, **settings: object) -> list[Fetched]:
    config = FetchConfig.model_validate({"allow_loopback": True, "timeout_s": 2, "max_bytes": 100_000, "attempts": 1} | settings)

    async def all_of_them() -> list[Fetched]:
        async with Fetcher(config) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(all_of_them())
