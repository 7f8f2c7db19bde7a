"""Transactions with SQLAlchemy: an event store, an outbox and an inbox in the tables of a service.

`SqlMessageStore` writes and reads in the transaction of a unit of work; `Relay` sends what was left; `tables` are SQLAlchemy Core, for your
migrations. SQLite (aiosqlite) and PostgreSQL (asyncpg or psycopg). The only package that imports SQLAlchemy; the extra is ``sqlalchemy``.
"""

from eventbus.sqlalchemy.message_store import SqlMessageStore
from eventbus.sqlalchemy.relay import Relay
from eventbus.sqlalchemy.schema import TABLES, Tables, tables

__all__ = ["TABLES", "Relay", "SqlMessageStore", "Tables", "tables"]
