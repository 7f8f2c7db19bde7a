"""Where the services of the club find each other."""

import os

URL = os.environ.get("EVENTBUS_URL", "redis://localhost:6379/0")
STREAM = "reading-club"
