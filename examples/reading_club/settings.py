"""Where the services of the club find each other, and the desk its books."""

import os

URL = os.environ.get("EVENTBUS_URL", "redis://localhost:6379/0")
STREAM = "reading-club"
DATABASE = os.environ.get("READING_CLUB_DATABASE", "sqlite+aiosqlite:///reading-club.db")
