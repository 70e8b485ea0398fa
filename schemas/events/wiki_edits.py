"""Edits of Wikipedia's pages, as Wikimedia's public feed of recent changes tells them."""

from datetime import timedelta

from pydantic import AwareDatetime

from freshet.schemas.event import Event, Stream


class WikiEdit(Event):
    """One edit of one page. Sizes are in bytes; places are known only of anonymous editors."""

    stream = Stream(
        topic="wiki_edits",
        key="user",
        event_time="time",
        lateness=timedelta(minutes=10),
        max_future=timedelta(minutes=5),
        version=1,
        partitions=8,
    )

    time: AwareDatetime
    channel: str
    page: str
    user: str
    namespace: str
    comment: str | None = None
    added: int
    deleted: int
    delta: int
    isAnonymous: bool
    isMinor: bool
    isNew: bool
    isRobot: bool
    isUnpatrolled: bool
    cityName: str | None = None
    countryIsoCode: str | None = None
    countryName: str | None = None
    regionIsoCode: str | None = None
    regionName: str | None = None
    metroCode: int | None = None
